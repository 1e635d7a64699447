create table orders (
    -- A UUIDv7: in the order of their times.
    id              varchar(64) not null primary key,
    customer_id     varchar(255) not null,
    line_items      text not null,
    total_cents     bigint not null,
    status          varchar(16) not null check (status in ('PENDING', 'CONFIRMED', 'CANCELLED')),
    cancel_reason   varchar(255) not null default '',
    create_time     bigint not null,
    idempotency_key varchar(255)
);
create index orders_by_customer on orders (customer_id, id);
