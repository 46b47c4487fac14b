-- What psql 18 adds: the extended protocol by hand, named statements, pipelines.
\set ON_ERROR_STOP on
\pset tuples_only on
\pset format unaligned
SELECT id, ssn FROM app.people WHERE id = $1 \bind 2 \g
SELECT label FROM app.numbers WHERE n = $1 AND label LIKE $2 \bind 4 'row%' \gset bound_
\echo :bound_label
SELECT label FROM app.numbers WHERE n = $1 \parse named
\bind_named named 1 \g
\bind_named named 2 \g
\close_prepared named
\startpipeline
SELECT n FROM app.numbers WHERE n = $1 \bind 11 \sendpipeline
INSERT INTO app.items (id, label) VALUES ($1, $2) \bind 50 'piped' \sendpipeline
\syncpipeline
SELECT label FROM app.items WHERE id = $1 \bind 50 \sendpipeline
SELECT ssn FROM app.people WHERE id = $1 \bind 1 \sendpipeline
\flushrequest
\getresults
DELETE FROM app.items WHERE id = $1 \bind 50 \sendpipeline
\endpipeline
\startpipeline
SELECT 1 / $1::int \bind 0 \sendpipeline
SELECT 'void' \bind \sendpipeline
\syncpipeline
SELECT 'goes on' \bind \sendpipeline
\set ON_ERROR_STOP off
\endpipeline
\set ON_ERROR_STOP on
SELECT count(*) FROM app.items;
