create table stock (
    sku         text primary key,
    on_hand     integer not null check (on_hand >= 0),
    reserved    integer not null default 0 check (reserved >= 0),
    shipped     integer not null default 0 check (shipped >= 0),
    price_cents integer not null check (price_cents >= 0),
    -- What was ever put in, minus what was ever taken out by hand: on_hand + reserved + shipped.
    put_in      integer not null
) without rowid;

create table reservations (
    order_id text not null,
    sku      text not null references stock (sku),
    quantity integer not null check (quantity > 0),
    state    text not null check (state in ('reserved', 'released', 'shipped')),
    primary key (order_id, sku)
) without rowid;
