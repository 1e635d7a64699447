create table shipments (
    order_id        text primary key,
    customer_id     text not null,
    tracking_number text not null,
    create_time     integer not null
) without rowid;
