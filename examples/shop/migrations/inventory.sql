create table stock (
    sku         varchar(255) not null primary key,
    on_hand     bigint not null check (on_hand >= 0),
    reserved    bigint not null default 0 check (reserved >= 0),
    shipped     bigint not null default 0 check (shipped >= 0),
    price_cents bigint not null check (price_cents >= 0),
    -- What was ever put in, minus what was ever taken out by hand: on_hand + reserved + shipped.
    put_in      bigint not null
);

create table reservations (
    order_id varchar(64) not null,
    sku      varchar(255) not null references stock (sku),
    quantity bigint not null check (quantity > 0),
    state    varchar(16) not null check (state in ('reserved', 'released', 'shipped')),
    primary key (order_id, sku)
);
