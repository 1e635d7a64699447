create table payments (
    order_id     text primary key,
    customer_id  text not null,
    card         text not null,
    amount_cents integer not null,
    status       text not null check (status in ('PENDING', 'CHARGED', 'DECLINED', 'REFUNDED')),
    update_time  integer not null,
    -- What answers the saga once the provider has decided.
    ticket       text not null
) without rowid;

-- The books of the simulated card provider: one charge and one refund per order at most.
create table provider_ledger (
    order_id     text not null,
    entry        text not null check (entry in ('charge', 'refund')),
    amount_cents integer not null,
    primary key (order_id, entry)
) without rowid;

create table provider_attempts (
    order_id text primary key,
    count    integer not null
) without rowid;
