//! tokio-postgres: simple and prepared statements, binary results, pipelines, savepoints, COPY, cancel.

use std::pin::pin;

use anyhow::{bail, Context, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{pin_mut, SinkExt, TryStreamExt};
use rust_decimal::Decimal;
use time::{Date, Month, OffsetDateTime};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use uuid::Uuid;

use super::checks::{ssn, Checks};
use super::Endpoint;

const NAME: &str = "tokio-postgres";

/// Long enough that only a cancel ends it: 125 thousand million rows.
const ENDLESS: &str = "SELECT a.n FROM app.numbers a, app.numbers b, app.numbers c";

pub(super) async fn flow(endpoint: &Endpoint) -> Result<String> {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(endpoint.port)
        .user(&endpoint.user)
        .dbname(&endpoint.database);
    if let Some(password) = &endpoint.password {
        config.password(password);
    }
    let (client, connection) = config.connect(NoTls).await?;
    let (checks, ended) = tokio::join!(checked(client, endpoint), connection);
    let checks = checks?;
    ended?;
    Ok(checks.ok(NAME))
}

async fn checked(mut client: Client, endpoint: &Endpoint) -> Result<Checks> {
    let mut checks = Checks::default();
    queries(&client, endpoint, &mut checks).await.context("queries")?;
    types(&mut client, &mut checks).await.context("types")?;
    transactions(&mut client, &mut checks).await.context("transactions")?;
    copies(&client, endpoint, &mut checks).await.context("COPY")?;
    cancel(&client, &mut checks).await.context("cancel")?;
    if endpoint.gated {
        refusals(&mut client, &mut checks).await.context("refusals")?;
    }
    Ok(checks)
}

async fn queries(client: &Client, endpoint: &Endpoint, checks: &mut Checks) -> Result<()> {
    let simple = client
        .simple_query("SELECT 1; SELECT ssn FROM app.people WHERE id = 1")
        .await?;
    let rows: Vec<_> = simple
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    checks.check("simple query", rows == ["1", &ssn(endpoint, "531-22-8841")])?;
    let statement = client
        .prepare("SELECT id, ssn AS secret FROM app.people WHERE id = $1")
        .await?;
    checks.check(
        "described",
        statement.columns().len() == 2 && statement.params().len() == 1,
    )?;
    for round in 1..=3 {
        let row = client.query_one(&statement, &[&2]).await?;
        let right = row.get::<_, i32>(0) == 2 && row.get::<_, String>("secret") == ssn(endpoint, "212-09-9923");
        checks.check(&format!("prepared, round {round}"), right)?;
    }
    let typed = client
        .query_typed("SELECT label FROM app.numbers WHERE n = $1", &[(&5, Type::INT4)])
        .await?;
    checks.check(
        "unnamed, typed",
        typed.len() == 1 && typed[0].get::<_, String>(0) == "row 5",
    )?;
    // Polled together, the requests are one pipeline.
    let statement = client.prepare("SELECT label FROM app.numbers WHERE n = $1").await?;
    let numbers: Vec<i32> = (1..=200).collect();
    let params: Vec<[&(dyn ToSql + Sync); 1]> = numbers.iter().map(|n| [n as _]).collect();
    let rows = try_join_all(params.iter().map(|params| client.query_one(&statement, params))).await?;
    let right = rows
        .iter()
        .zip(&numbers)
        .all(|(row, n)| row.get::<_, String>(0) == format!("row {n}"));
    checks.check("pipeline of 200", right)
}

const INSERT: &str = "INSERT INTO app.items (id, big, price, ratio, label, active, day, at, uid, doc, raw, tags, nums)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *";

/// Every type of `app.items`, in binary form both ways.
async fn types(client: &mut Client, checks: &mut Checks) -> Result<()> {
    let day = Date::from_calendar_date(2026, Month::January, 2)?;
    let at = OffsetDateTime::from_unix_timestamp(1_767_323_045)?.replace_microsecond(678_901)?;
    let (uid, price) = (Uuid::now_v7(), Decimal::new(-1250, 2));
    let doc = serde_json::json!({"a": [1, null], "b": "Grüße"});
    let (raw, tags, nums) = (vec![0u8, 255, b'\\'], vec![Some("a"), None, Some("b,c")], vec![1, 2, 3]);
    let transaction = client.transaction().await?;
    let row = transaction
        .query_one(
            INSERT,
            &[
                &1,
                &(1i64 << 40),
                &price,
                &0.25f64,
                &"it's",
                &true,
                &day,
                &at,
                &uid,
                &doc,
                &raw,
                &tags,
                &nums,
            ],
        )
        .await?;
    let numbers = (row.get::<_, i64>(1), row.get::<_, Decimal>(2), row.get::<_, f64>(3));
    checks.check("numbers", numbers == (1 << 40, price, 0.25))?;
    let plain = (row.get::<_, &str>(4), row.get::<_, bool>(5), row.get::<_, Date>(6));
    checks.check("text, bool, date", plain == ("it's", true, day))?;
    checks.check("timestamptz", row.get::<_, OffsetDateTime>(7) == at)?;
    checks.check("uuid", row.get::<_, Uuid>(8) == uid)?;
    checks.check("jsonb", row.get::<_, serde_json::Value>(9) == doc)?;
    checks.check("bytea", row.get::<_, Vec<u8>>(10) == raw)?;
    checks.check("text array", row.get::<_, Vec<Option<&str>>>(11) == tags)?;
    checks.check("int array", row.get::<_, Vec<i32>>(12) == nums)?;
    transaction.rollback().await?;
    Ok(())
}

fn state(result: Result<u64, tokio_postgres::Error>) -> Result<SqlState> {
    match result {
        Ok(rows) => bail!("no error, {rows} rows"),
        Err(error) => Ok(error.code().context("an error without a state")?.clone()),
    }
}

async fn count(client: &Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM app.items", &[]).await?.get(0))
}

/// Commit, savepoints, an error and the way back from it.
async fn transactions(client: &mut Client, checks: &mut Checks) -> Result<()> {
    let mut outer = client.transaction().await?;
    outer.execute("INSERT INTO app.items (id) VALUES ($1)", &[&1]).await?;
    let inner = outer.savepoint("one").await?;
    inner.execute("INSERT INTO app.items (id) VALUES ($1)", &[&2]).await?;
    let twice = inner.execute("INSERT INTO app.items (id) VALUES ($1)", &[&1]).await;
    checks.check("a key twice", state(twice)? == SqlState::UNIQUE_VIOLATION)?;
    let failed = inner.execute("SELECT 1", &[]).await;
    checks.check(
        "then the transaction is failed",
        state(failed)? == SqlState::IN_FAILED_SQL_TRANSACTION,
    )?;
    inner.rollback().await?;
    let inner = outer.savepoint("two").await?;
    inner.execute("INSERT INTO app.items (id) VALUES ($1)", &[&3]).await?;
    inner.commit().await?;
    outer.commit().await?;
    checks.check("what was committed", count(client).await? == 2)?;
    let deleted = client
        .execute("DELETE FROM app.items WHERE id = ANY($1)", &[&vec![1, 2, 3]])
        .await?;
    checks.check("deleted", deleted == 2 && count(client).await? == 0)
}

async fn copies(client: &Client, endpoint: &Endpoint, checks: &mut Checks) -> Result<()> {
    let sink = client.copy_in("COPY app.items (id, label) FROM STDIN").await?;
    pin_mut!(sink);
    for n in 0..100 {
        sink.send(Bytes::from(format!("{n}\tline {n}\n"))).await?;
    }
    checks.check("COPY in", sink.finish().await? == 100)?;
    let broken = client.copy_in("COPY app.items (id, label) FROM STDIN").await?;
    pin_mut!(broken);
    broken.send(Bytes::from_static(b"not a number\tx\n")).await?;
    let error = state(broken.finish().await)?;
    checks.check("bad COPY data", error == SqlState::INVALID_TEXT_REPRESENTATION)?;
    let out = client
        .copy_out("COPY (SELECT id, label FROM app.items WHERE id < 2 ORDER BY id) TO STDOUT")
        .await?;
    let out: Vec<Bytes> = out.try_collect().await?;
    checks.check("COPY out", out.concat() == b"0\tline 0\n1\tline 1\n")?;
    let out: Vec<Bytes> = client
        .copy_out("COPY app.people TO STDOUT")
        .await?
        .try_collect()
        .await?;
    let first = format!("1\tAda\t{}\n", ssn(endpoint, "531-22-8841"));
    checks.check(
        "COPY out of a masked column",
        out.concat().starts_with(first.as_bytes()),
    )?;
    let deleted = client.execute("DELETE FROM app.items WHERE id >= $1", &[&0]).await?;
    checks.check("deleted", deleted == 100)
}

/// One request, once the first row tells that the statement runs: a second could hit what comes after.
async fn cancel(client: &Client, checks: &mut Checks) -> Result<()> {
    let none: [&(dyn ToSql + Sync); 0] = [];
    let mut rows = pin!(client.query_raw(ENDLESS, none).await?);
    checks.check("it runs", rows.try_next().await?.is_some())?;
    client.cancel_token().cancel_query(NoTls).await?;
    let mut seen = Ok(Some(()));
    while let Ok(Some(())) = seen {
        seen = rows.try_next().await.map(|row| row.map(drop));
    }
    checks.check("cancelled", state(seen.map(|_| 0))? == SqlState::QUERY_CANCELED)?;
    let row = client.query_one("SELECT 1", &[]).await?;
    checks.check("and the session goes on", row.get::<_, i32>(0) == 1)
}

async fn refusals(client: &mut Client, checks: &mut Checks) -> Result<()> {
    for _ in 0..2 {
        let refused = client.execute("DROP TABLE app.items", &[]).await;
        let told = matches!(&refused, Err(error) if format!("{error:?}").contains("Sidegate refused"));
        checks.check("refused", told && state(refused)? == SqlState::INSUFFICIENT_PRIVILEGE)?;
        client.query_one("SELECT 1", &[]).await?;
    }
    let mut transaction = client.transaction().await?;
    transaction
        .execute("INSERT INTO app.items (id) VALUES (9)", &[])
        .await?;
    let savepoint = transaction.savepoint("before").await?;
    let refused = state(savepoint.execute("DELETE FROM app.items", &[]).await)?;
    checks.check("refused in a transaction", refused == SqlState::INSUFFICIENT_PRIVILEGE)?;
    savepoint.rollback().await?;
    let left = transaction.query_one("SELECT count(*) FROM app.items", &[]).await?;
    checks.check("the savepoint brings it back", left.get::<_, i64>(0) == 1)?;
    transaction.rollback().await?;
    let (good, bad, after) = tokio::join!(
        client.execute("SELECT label FROM app.numbers WHERE n = 1", &[]),
        client.execute("DELETE FROM app.people WHERE id = 1", &[]),
        client.execute("SELECT label FROM app.numbers WHERE n = 2", &[]),
    );
    checks.check("refused in a pipeline", (good?, after?) == (1, 1) && bad.is_err())
}
