create table payments (
    order_id     varchar(64) not null primary key,
    customer_id  varchar(255) not null,
    card         varchar(255) not null,
    amount_cents bigint not null,
    status       varchar(16) not null
                 check (status in ('PENDING', 'CHARGED', 'DECLINED', 'REFUNDED')),
    update_time  bigint not null,
    -- What answers the saga once the provider has decided.
    ticket       text not null
);

-- The books of the simulated card provider: one charge and one refund per order at most.
create table provider_ledger (
    order_id     varchar(64) not null,
    entry        varchar(16) not null check (entry in ('charge', 'refund')),
    amount_cents bigint not null,
    primary key (order_id, entry)
);

create table provider_attempts (
    order_id varchar(64) not null primary key,
    attempts bigint not null
);
