//! Seeded simulation of relay, inbox, retry ladder and saga in virtual time.
