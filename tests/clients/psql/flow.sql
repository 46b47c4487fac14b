-- Everyday psql, the same on every version from 15 on.
\set ON_ERROR_STOP on
\pset footer off
\d app.numbers
\pset tuples_only on
\pset format unaligned
\dt app.numb*
SELECT id, name, ssn FROM app.people ORDER BY id \g
SELECT n, label FROM app.numbers WHERE n = 7 \gset seen_
\echo :seen_n :seen_label
SELECT n, label AS text, n::numeric(5, 1) AS number FROM app.numbers \gdesc
SELECT format('SELECT %s', n) FROM app.numbers WHERE n < 3 ORDER BY n \gexec
SELECT n, label FROM app.numbers WHERE n = 3 \gx
BEGIN;
INSERT INTO app.items (id, label) VALUES (1, 'one'), (2, 'two');
SAVEPOINT a;
\set ON_ERROR_STOP off
\set ON_ERROR_ROLLBACK on
INSERT INTO app.items (id) VALUES (1);
\echo :SQLSTATE
\set ON_ERROR_STOP on
SELECT count(*) FROM app.items;
ROLLBACK TO a;
UPDATE app.items SET label = 'changed' WHERE id = 1 RETURNING label;
COMMIT;
\copy app.items (id, label) FROM STDIN
20	twenty
21	\N
\.
COPY app.items (id, label) FROM STDIN;
22	tab\tinside
\.
\copy (SELECT id, label FROM app.items ORDER BY id) TO STDOUT
COPY app.people (id, ssn) TO STDOUT;
\set FETCH_COUNT 700
SELECT n FROM app.numbers WHERE n % 1000 = 0 ORDER BY n;
\unset FETCH_COUNT
DELETE FROM app.items WHERE id > 0;
PREPARE p (int) AS SELECT label FROM app.numbers WHERE n = $1;
EXECUTE p (9);
DEALLOCATE p;
