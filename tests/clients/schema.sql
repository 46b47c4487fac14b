CREATE SCHEMA app;
CREATE TABLE app.people (id int PRIMARY KEY, name text NOT NULL, ssn text NOT NULL);
INSERT INTO app.people VALUES (1, 'Ada', '531-22-8841'), (2, 'Ben', '212-09-9923'), (3, 'Cleo', '402-77-1350');
CREATE TABLE app.items (
    id     int PRIMARY KEY,
    big    bigint,
    price  numeric(12, 2),
    ratio  double precision,
    label  text,
    active boolean,
    day    date,
    at     timestamptz,
    uid    uuid,
    doc    jsonb,
    raw    bytea,
    tags   text[],
    nums   int[]
);
CREATE TABLE app.numbers (n int PRIMARY KEY, label text);
INSERT INTO app.numbers SELECT g, 'row ' || g FROM generate_series(1, 5000) g;
