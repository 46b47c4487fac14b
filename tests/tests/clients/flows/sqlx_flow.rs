//! sqlx: its statement cache and binary formats, the simple protocol, nested transactions, COPY, rows as a stream.

use anyhow::{bail, Context, Result};
use futures_util::TryStreamExt;
use rust_decimal::Decimal;
use sqlx::postgres::{PgConnectOptions, PgPoolCopyExt, PgPoolOptions, PgSslMode};
use sqlx::types::Json;
use sqlx::{Connection, Executor, PgConnection, Row};
use time::{Date, Month, OffsetDateTime};
use uuid::Uuid;

use super::checks::{ssn, Checks};
use super::Endpoint;

pub(super) async fn flow(endpoint: &Endpoint) -> Result<String> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(endpoint.port)
        .username(&endpoint.user)
        .database(&endpoint.database)
        .ssl_mode(PgSslMode::Disable);
    if let Some(password) = &endpoint.password {
        options = options.password(password);
    }
    let mut checks = Checks::default();
    let mut conn = PgConnection::connect_with(&options).await?;
    conn.ping().await?;
    queries(&mut conn, endpoint, &mut checks).await.context("queries")?;
    types(&mut conn, &mut checks).await.context("types")?;
    transactions(&mut conn, &mut checks).await.context("transactions")?;
    copies(&mut conn, endpoint, &mut checks).await.context("COPY")?;
    if endpoint.gated {
        refusals(&mut conn, &mut checks).await.context("refusals")?;
    }
    conn.close().await?;
    pool(options, &mut checks).await.context("pool")?;
    Ok(checks.ok("sqlx"))
}

async fn queries(conn: &mut PgConnection, endpoint: &Endpoint, checks: &mut Checks) -> Result<()> {
    for round in 1..=3 {
        let (id, secret): (i32, String) = sqlx::query_as("SELECT id, ssn FROM app.people WHERE id = $1")
            .bind(2)
            .fetch_one(&mut *conn)
            .await?;
        let right = (id, secret) == (2, ssn(endpoint, "212-09-9923"));
        checks.check(&format!("cached statement, round {round}"), right)?;
    }
    let once: String = sqlx::query_scalar("SELECT label FROM app.numbers WHERE n = $1")
        .bind(5)
        .persistent(false)
        .fetch_one(&mut *conn)
        .await?;
    checks.check("unnamed statement", once == "row 5")?;
    let rows = conn
        .fetch_all(sqlx::raw_sql(
            "SELECT id FROM app.people; SELECT ssn FROM app.people WHERE id = 1",
        ))
        .await?;
    let last: String = rows.last().context("no row")?.get(0);
    checks.check(
        "simple protocol",
        rows.len() == 4 && last == ssn(endpoint, "531-22-8841"),
    )?;
    let mut stream = sqlx::query_scalar::<_, i32>("SELECT n FROM app.numbers ORDER BY n").fetch(&mut *conn);
    let (mut rows, mut sum) = (0, 0);
    while let Some(n) = stream.try_next().await? {
        (rows, sum) = (rows + 1, sum + n);
    }
    drop(stream);
    checks.check("stream", (rows, sum) == (5000, 5000 * 5001 / 2))?;
    // What it does not read it must skip before the next statement.
    let first: Option<(i32,)> = sqlx::query_as("SELECT n FROM app.numbers ORDER BY n DESC")
        .fetch_optional(&mut *conn)
        .await?;
    checks.check("the first of many", first == Some((5000,)))
}

const INSERT: &str = "INSERT INTO app.items (id, big, price, ratio, label, active, day, at, uid, doc, raw, tags, nums)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *";

async fn types(conn: &mut PgConnection, checks: &mut Checks) -> Result<()> {
    let day = Date::from_calendar_date(2026, Month::January, 2)?;
    let at = OffsetDateTime::from_unix_timestamp(1_767_323_045)?.replace_microsecond(678_901)?;
    let (uid, price) = (Uuid::now_v7(), Decimal::new(-1250, 2));
    let doc = serde_json::json!({"a": [1, null], "b": "Grüße"});
    let tags = vec![Some("a".to_owned()), None, Some("b,c".to_owned())];
    let mut transaction = conn.begin().await?;
    let row = sqlx::query(INSERT)
        .bind(1)
        .bind(1i64 << 40)
        .bind(price)
        .bind(0.25)
        .bind("it's")
        .bind(true)
        .bind(day)
        .bind(at)
        .bind(uid)
        .bind(Json(&doc))
        .bind(vec![0u8, 255, b'\\'])
        .bind(&tags)
        .bind(vec![1, 2, 3])
        .fetch_one(&mut *transaction)
        .await?;
    let numbers = (row.get::<i64, _>(1), row.get::<Decimal, _>(2), row.get::<f64, _>(3));
    checks.check("numbers", numbers == (1 << 40, price, 0.25))?;
    let plain = (row.get::<&str, _>(4), row.get::<bool, _>(5), row.get::<Date, _>(6));
    checks.check("text, bool, date", plain == ("it's", true, day))?;
    checks.check("timestamptz", row.get::<OffsetDateTime, _>(7) == at)?;
    checks.check("uuid", row.get::<Uuid, _>(8) == uid)?;
    checks.check("jsonb", row.get::<serde_json::Value, _>(9) == doc)?;
    checks.check("bytea", row.get::<&[u8], _>(10) == [0, 255, b'\\'])?;
    checks.check("text array", row.get::<Vec<Option<String>>, _>(11) == tags)?;
    checks.check("int array", row.get::<Vec<i32>, _>(12) == [1, 2, 3])?;
    transaction.rollback().await?;
    Ok(())
}

async fn insert(conn: &mut PgConnection, id: i32) -> sqlx::Result<u64> {
    let insert = sqlx::query("INSERT INTO app.items (id) VALUES ($1)").bind(id);
    Ok(insert.execute(conn).await?.rows_affected())
}

async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM app.items")
        .fetch_one(conn)
        .await
}

fn state<T>(result: sqlx::Result<T>) -> Result<String> {
    match result {
        Err(sqlx::Error::Database(error)) => Ok(error.code().unwrap_or_default().into_owned()),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("no error"),
    }
}

/// `begin` within a transaction is a savepoint; a dropped one rolls back with the next statement.
async fn transactions(conn: &mut PgConnection, checks: &mut Checks) -> Result<()> {
    let mut outer = conn.begin().await?;
    insert(&mut outer, 1).await?;
    let mut inner = outer.begin().await?;
    insert(&mut inner, 2).await?;
    checks.check("a key twice", state(insert(&mut inner, 1).await)? == "23505")?;
    checks.check(
        "then the transaction is failed",
        state(count(&mut inner).await)? == "25P02",
    )?;
    inner.rollback().await?;
    let mut inner = outer.begin().await?;
    insert(&mut inner, 3).await?;
    inner.commit().await?;
    let mut dropped = outer.begin().await?;
    insert(&mut dropped, 4).await?;
    drop(dropped);
    checks.check("savepoints", count(&mut outer).await? == 2)?;
    outer.commit().await?;
    let deleted = sqlx::query("DELETE FROM app.items WHERE id = ANY($1)")
        .bind(vec![1, 2, 3, 4])
        .execute(&mut *conn)
        .await?;
    checks.check("deleted", deleted.rows_affected() == 2 && count(conn).await? == 0)
}

async fn copies(conn: &mut PgConnection, endpoint: &Endpoint, checks: &mut Checks) -> Result<()> {
    let mut copy = conn
        .copy_in_raw("COPY app.items (id, label) FROM STDIN (FORMAT csv)")
        .await?;
    for n in 0..100 {
        copy.send(format!("{n},\"line {n}\"\n").as_bytes()).await?;
    }
    checks.check("COPY in", copy.finish().await? == 100)?;
    let mut copy = conn.copy_in_raw("COPY app.items (id, label) FROM STDIN").await?;
    copy.send(b"200\thalf a li".as_slice()).await?;
    copy.abort("changed my mind").await?;
    checks.check("an aborted COPY leaves nothing", count(conn).await? == 100)?;
    let copy = conn
        .copy_out_raw("COPY (SELECT id FROM app.items WHERE id < 2 ORDER BY id) TO STDOUT")
        .await?;
    let out: Vec<_> = copy.try_collect().await?;
    checks.check("COPY out", out.concat() == b"0\n1\n")?;
    let out: Vec<_> = conn
        .copy_out_raw("COPY app.people TO STDOUT")
        .await?
        .try_collect()
        .await?;
    let first = format!("1\tAda\t{}\n", ssn(endpoint, "531-22-8841"));
    checks.check(
        "COPY out of a masked column",
        out.concat().starts_with(first.as_bytes()),
    )?;
    let deleted = sqlx::query("DELETE FROM app.items WHERE id >= 0").execute(conn).await?;
    checks.check("deleted", deleted.rows_affected() == 100)
}

async fn refusals(conn: &mut PgConnection, checks: &mut Checks) -> Result<()> {
    for _ in 0..2 {
        let refused = sqlx::query("DROP TABLE app.items").execute(&mut *conn).await;
        let told = matches!(&refused, Err(error) if error.to_string().contains("Sidegate refused"));
        checks.check("refused", told && state(refused)? == "42501")?;
        let refused = sqlx::raw_sql("DROP TABLE app.items").execute(&mut *conn).await;
        checks.check("refused, simple", state(refused)? == "42501")?;
        conn.ping().await?;
    }
    let mut outer = conn.begin().await?;
    insert(&mut outer, 9).await?;
    let mut inner = outer.begin().await?;
    let refused = sqlx::query("DELETE FROM app.items").execute(&mut *inner).await;
    checks.check("refused in a transaction", state(refused)? == "42501")?;
    inner.rollback().await?;
    checks.check("the savepoint brings it back", count(&mut outer).await? == 1)?;
    outer.rollback().await?;
    Ok(())
}

/// Two connections of a pool, one left in a transaction: the pool rolls it back.
async fn pool(options: PgConnectOptions, checks: &mut Checks) -> Result<()> {
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
    let mut one = pool.begin().await?;
    insert(&mut one, 1).await?;
    checks.check(
        "another connection does not see it",
        count(&mut *pool.acquire().await?).await? == 0,
    )?;
    drop(one);
    let out: Vec<_> = pool
        .copy_out_raw("COPY app.items TO STDOUT")
        .await?
        .try_collect()
        .await?;
    checks.check("rolled back", out.is_empty())?;
    pool.close().await;
    Ok(())
}
