create table awards (
    order_id    varchar(64) not null primary key,
    customer_id varchar(255) not null,
    points      bigint not null
);

create table balances (
    customer_id varchar(255) not null primary key,
    points      bigint not null
);
