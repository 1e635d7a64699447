-- Numbers are given per customer, under the lock of this row: a subscriber who has seen number 7
-- has missed none before it.
create table subscriptions (
    customer_id varchar(255) not null primary key,
    last_number bigint not null
);

create table notifications (
    customer_id varchar(255) not null,
    number      bigint not null,
    order_id    varchar(64) not null,
    text        text not null,
    create_time bigint not null,
    primary key (customer_id, number)
);
