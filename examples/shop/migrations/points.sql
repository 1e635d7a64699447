create table awards (
    order_id    text primary key,
    customer_id text not null,
    points      integer not null
) without rowid;

create table balances (
    customer_id text primary key,
    points      integer not null
) without rowid;
