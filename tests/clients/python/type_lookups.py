"""asyncpg and psycopg: what they ask of the catalogs to learn types."""

import asyncio

import asyncpg
import psycopg
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo
from psycopg.types.enum import EnumInfo
from psycopg.types.multirange import MultirangeInfo
from psycopg.types.range import RangeInfo


async def asynchronous():
    async with asyncpg.create_pool(min_size=1, max_size=1, ssl=False) as pool:
        async with pool.acquire() as connection:
            rows = await connection.fetch("SELECT moods, p, name FROM app.users")
            assert rows[0]["moods"] == ["ok"], rows
            await connection.set_type_codec("mood", schema="app", encoder=str, decoder=str)
            await connection.reload_schema_state()
            assert await connection.fetchval("SELECT 1") == 1


with psycopg.connect() as connection:
    for kind, name in [
        (TypeInfo, "app.short"),
        (CompositeInfo, "app.pair"),
        (EnumInfo, "app.mood"),
        (RangeInfo, "int4range"),
        (MultirangeInfo, "int4multirange"),
    ]:
        assert kind.fetch(connection, name) is not None, name
asyncio.run(asynchronous())
