"""asyncpg: binary results throughout, its own prepared statement cache, introspection of types, cursors, COPY."""

import asyncio
import datetime
import decimal
import os
import sys
import uuid

import asyncpg

MASKED, GATED = os.environ.get("MASKED") == "1", os.environ.get("GATED") == "1"
checks = 0


def check(what, condition):
    global checks
    checks += 1
    if not condition:
        sys.exit(f"asyncpg: {what}")


def ssn(plain):
    return "*" * (len(plain) - 4) + plain[-4:] if MASKED else plain


async def main():
    conn = await asyncpg.connect()
    for round in range(3):
        rows = await conn.fetch("SELECT id, name, ssn FROM app.people ORDER BY id")
        check(f"rows {round}", tuple(rows[1]) == (2, "Ben", ssn("212-09-9923")))
    statement = await conn.prepare("SELECT ssn FROM app.people WHERE id = $1")
    for id, plain in ((1, "531-22-8841"), (3, "402-77-1350")):
        check("prepared", await statement.fetchval(id) == ssn(plain))
    uid, at = uuid.uuid4(), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
    values = (1, 2**40, decimal.Decimal("12.50"), 0.25, "text", True, datetime.date(2026, 1, 2), at, uid, '{"a": 1}',
              b"\x00\xff", ["a", None], [1, 2])
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("INSERT INTO app.items VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)", *values)
    row = await conn.fetchrow("SELECT * FROM app.items WHERE id = $1", 1)
    check("types", tuple(row) == values)
    await transaction.rollback()
    check("rolled back", await conn.fetchval("SELECT count(*) FROM app.items") == 0)
    await conn.executemany("INSERT INTO app.items (id, label) VALUES ($1, $2)", [(n, f"many {n}") for n in range(50)])
    check("executemany", await conn.execute("DELETE FROM app.items WHERE id < $1", 50) == "DELETE 50")
    async with conn.transaction():
        total = 0
        async for record in conn.cursor("SELECT n FROM app.numbers", prefetch=333):
            total += record["n"]
        check("cursor", total == 5000 * 5001 // 2)
    await conn.copy_records_to_table("items", schema_name="app", columns=["id", "label"], records=[(1, "x"), (2, "y")])
    check("copy in", await conn.execute("DELETE FROM app.items WHERE id IN (1, 2)") == "DELETE 2")
    out = []

    async def sink(data):
        out.append(data)

    await conn.copy_from_query("SELECT n FROM app.numbers WHERE n <= 2 ORDER BY n", output=sink)
    check("copy out", b"".join(out) == b"1\n2\n")
    if GATED:
        for _ in range(2):
            try:
                await conn.execute("DROP TABLE app.items")
                check("the drop is refused", False)
            except asyncpg.InsufficientPrivilegeError as error:
                check("the refusal stands in the message", "Sidegate refused" in str(error))
            check("the connection goes on", await conn.fetchval("SELECT 1") == 1)
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO app.items (id) VALUES (900)")
                await conn.fetch("DELETE FROM app.people WHERE $1 = 1", 1)
        except asyncpg.InsufficientPrivilegeError:
            pass
        check("a refusal fails the transaction", await conn.fetchval("SELECT count(*) FROM app.items WHERE id = 900") == 0)
    await conn.close()
    print(f"ok asyncpg {checks}")


asyncio.run(main())
