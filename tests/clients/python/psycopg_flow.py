"""psycopg 3 on libpq 18: text and binary results, prepared statements, pipelines, server cursors, COPY."""

import datetime
import os
import sys
import uuid

import psycopg
from psycopg.types.json import Jsonb

MASKED, GATED = os.environ.get("MASKED") == "1", os.environ.get("GATED") == "1"
checks = 0


def check(what, condition):
    global checks
    checks += 1
    if not condition:
        sys.exit(f"psycopg: {what}")


def ssn(plain):
    return "*" * (len(plain) - 4) + plain[-4:] if MASKED else plain


conn = psycopg.connect("", autocommit=True)
check("libpq 18", psycopg.pq.version() >= 180000)

for binary in (False, True):
    cur = conn.cursor(binary=binary)
    cur.execute("SELECT id, name, ssn AS secret FROM app.people ORDER BY id")
    check(f"rows, binary={binary}", cur.fetchall()[0] == (1, "Ada", ssn("531-22-8841")))
    for round in range(4):
        row = cur.execute("SELECT ssn, id FROM app.people WHERE id = %s", (2,), prepare=True).fetchone()
        check(f"prepared round {round}, binary={binary}", row == (ssn("212-09-9923"), 2))

uid, at = uuid.uuid4(), datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
values = (1, 2**40, 12.50, 0.25, "Grüße 'quoted'", True, datetime.date(2026, 1, 2), at, uid, Jsonb({"a": [1, None]}),
          b"\x00\xff\\x", ["a", None, "b,c"], [1, 2, 3])
for binary in (False, True):
    with conn.transaction():
        cur = conn.cursor(binary=binary)
        cur.execute("INSERT INTO app.items VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) RETURNING id", values)
        check("returning", cur.fetchone() == (1,))
        row = cur.execute("SELECT * FROM app.items WHERE id = 1").fetchone()
        check(f"types, binary={binary}", row[1] == 2**40 and float(row[2]) == 12.5 and row[3] == 0.25 and row[4] == values[4]
              and row[5] is True and row[6] == values[6] and row[7] == at and row[8] == uid and row[9] == {"a": [1, None]}
              and row[10] == values[10] and row[11] == values[11] and row[12] == values[12])
        raise psycopg.Rollback()
check("rolled back", conn.execute("SELECT count(*) FROM app.items").fetchone() == (0,))

with conn.pipeline():
    first = conn.execute("SELECT n FROM app.numbers WHERE n = %s", (7,))
    second = conn.execute("SELECT label FROM app.numbers WHERE n = %s", (8,))
check("pipeline", first.fetchone() == (7,) and second.fetchone() == ("row 8",))

with conn.transaction():
    with conn.cursor(name="c1") as named:
        named.itersize = 700
        named.execute("SELECT n FROM app.numbers ORDER BY n")
        check("server cursor", sum(row[0] for row in named) == 5000 * 5001 // 2)
    with conn.cursor(name="c2") as named:
        named.execute("SELECT ssn FROM app.people ORDER BY id")
        check("cursor on a masked column", named.fetchmany(2) == [(ssn("531-22-8841"),), (ssn("212-09-9923"),)])

with conn.cursor() as cur:
    with cur.copy("COPY app.items (id, label) FROM STDIN") as copy:
        for n in range(100):
            copy.write_row((n + 10, f"copied\t{n}"))
    check("copy in", cur.rowcount == 100)
    with cur.copy("COPY (SELECT n, label FROM app.numbers WHERE n <= 3 ORDER BY n) TO STDOUT") as copy:
        check("copy out", list(copy.rows()) == [("1", "row 1"), ("2", "row 2"), ("3", "row 3")])
    with cur.copy("COPY app.people TO STDOUT") as copy:
        check("copy of a masked column", sorted(copy.rows())[0] == ("1", "Ada", ssn("531-22-8841")))
    cur.execute("DELETE FROM app.items WHERE id >= %s", (10,))
    check("delete", cur.rowcount == 100)

try:
    conn.execute("SELECT * FROM app.nowhere")
    check("a missing table is an error", False)
except psycopg.Error as error:
    check("its state", error.sqlstate in ("42P01", "42501"))

if GATED:
    for attempt in range(2):
        try:
            conn.execute("DROP TABLE app.items")
            check("the drop is refused", False)
        except psycopg.errors.InsufficientPrivilege as error:
            check("the refusal stands in the message", "Sidegate refused" in str(error))
        check("the connection goes on", conn.execute("SELECT 1").fetchone() == (1,))
    try:
        with conn.transaction():
            conn.execute("INSERT INTO app.items (id) VALUES (900)")
            conn.execute("DROP TABLE app.items")
    except psycopg.errors.InsufficientPrivilege:
        pass
    check("a refusal fails the transaction", conn.execute("SELECT count(*) FROM app.items WHERE id = 900").fetchone() == (0,))

conn.close()
print(f"ok psycopg {checks}")
