//! Transactions with emit, outbox, relay, inbox, idempotent calls, ledger: ports and the pure engine.
