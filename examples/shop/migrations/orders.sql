create table orders (
    number        integer primary key autoincrement,
    id            text not null unique,
    customer_id   text not null,
    lines         text not null,
    total_cents   integer not null,
    status        text not null check (status in ('PENDING', 'CONFIRMED', 'CANCELLED')),
    cancel_reason text not null default '',
    create_time   integer not null,
    idempotency_key text
);
create index orders_by_customer on orders (customer_id, number);
create index orders_by_key on orders (idempotency_key) where idempotency_key is not null;
