create table notifications (
    number      integer primary key autoincrement,
    customer_id text not null,
    order_id    text not null,
    text        text not null,
    create_time integer not null
);
create index notifications_by_customer on notifications (customer_id, number);
