-- What the shop's database looks like, for `sidegate explain` and `sidegate policy test`. Only names and types count;
-- `pg_dump --schema-only` prints the same for a database of your own.
CREATE SCHEMA app;

CREATE TABLE app.customers (
    id          integer PRIMARY KEY,
    name        text NOT NULL,
    email       text NOT NULL,
    ssn         text NOT NULL,
    card_number text NOT NULL,
    notes       text,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE app.orders (
    id           integer PRIMARY KEY,
    customer_id  integer NOT NULL REFERENCES app.customers,
    amount_cents integer NOT NULL,
    status       text NOT NULL,
    refunded_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE app.cart_items (
    id          integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES app.customers,
    product     text NOT NULL
);
