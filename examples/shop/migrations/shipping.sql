create table shipments (
    order_id        varchar(64) not null primary key,
    customer_id     varchar(255) not null,
    tracking_number varchar(255) not null,
    create_time     bigint not null
);
