//! A masked column stays masked on every way out, and is refused where it could answer a question.

use sidegate_tests::postgres::Major;
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{Shop, DATABASE};
use sidegate_tests::wire::{bind, execute, parse, sync, Wire};

const PLAIN: [&str; 3] = ["531-22-8841", "212-09-9923", "402-77-1350"];
const MASKED: &str = "*******8841";

const VIEWS: &str = "CREATE VIEW app.simple AS SELECT id, ssn AS number FROM app.people;
    CREATE VIEW app.nested AS SELECT number AS n2, id FROM app.simple;
    CREATE VIEW app.computed AS SELECT id, 'no ' || ssn AS text FROM app.people;
    GRANT SELECT ON app.simple, app.nested, app.computed TO shop_agent";

const UNIQUE: &str = "ALTER TABLE app.people ADD CONSTRAINT one_ssn UNIQUE (ssn)";

fn leaks(text: &str) -> bool {
    PLAIN.iter().any(|plain| text.contains(plain))
}

/// Ways to read the column as it is: each must answer rows, and none of them plain.
const READ: [&str; 22] = [
    "SELECT ssn FROM app.people",
    "SELECT ssn AS x FROM app.people p",
    "SELECT p.* FROM app.people p",
    "SELECT * FROM app.people",
    "TABLE app.people",
    "SELECT x FROM (SELECT ssn AS x, id FROM app.people) s",
    "WITH c AS (SELECT id, ssn s FROM app.people) SELECT s FROM c",
    "WITH c(a, b) AS MATERIALIZED (SELECT id, ssn FROM app.people) SELECT b, a FROM c",
    "SELECT number FROM app.simple",
    "SELECT n2 FROM app.nested",
    "SELECT a.ssn, b.n FROM app.people a JOIN app.numbers b ON a.id = b.n",
    "SELECT a.ssn FROM app.people a LEFT JOIN LATERAL (SELECT n FROM app.numbers WHERE n = a.id) l ON true",
    "SELECT ssn FROM app.people ORDER BY id DESC LIMIT 2",
    "SELECT ssn FROM app.people WHERE id IN (SELECT n FROM app.numbers WHERE n < 3)",
    "SELECT ssn FROM app.people UNION ALL SELECT label FROM app.numbers WHERE n = 1",
    "COPY app.people TO STDOUT",
    "COPY app.people (ssn, id) TO STDOUT WITH (FORMAT csv)",
    "COPY (SELECT ssn FROM app.people) TO STDOUT WITH (FORMAT csv, HEADER, FORCE_QUOTE *)",
    "BEGIN; DECLARE c CURSOR FOR SELECT ssn FROM app.people; FETCH 2 FROM c; COMMIT",
    "PREPARE p AS SELECT ssn FROM app.people; EXECUTE p; DEALLOCATE p",
    "SELECT p.ssn FROM app.people p, app.people q WHERE p.id = q.id",
    "SELECT ssn FROM ONLY app.people FOR SHARE",
];

/// Ways to ask a question about it: each must be refused.
const ASK: [&str; 37] = [
    "SELECT id FROM app.people WHERE ssn = '531-22-8841'",
    "SELECT id FROM app.people WHERE ssn LIKE '531%'",
    "SELECT id FROM app.people ORDER BY ssn",
    "SELECT ssn AS x FROM app.people ORDER BY x",
    "SELECT ssn FROM app.people ORDER BY 1",
    "SELECT count(*) FROM app.people GROUP BY ssn",
    "SELECT DISTINCT ssn FROM app.people",
    "SELECT ssn || '' FROM app.people",
    "SELECT upper(ssn) FROM app.people",
    "SELECT substr(ssn, 1, 3) FROM app.people",
    "SELECT ssn::bytea FROM app.people",
    "SELECT max(ssn) FROM app.people",
    "SELECT string_agg(ssn, ',') FROM app.people",
    "SELECT array_agg(ssn) FROM app.people",
    "SELECT CASE WHEN ssn > '5' THEN 1 ELSE 0 END FROM app.people",
    "SELECT a.id FROM app.people a JOIN app.people b ON a.ssn = b.ssn AND a.id <> b.id",
    "SELECT id FROM app.people NATURAL JOIN (SELECT ssn FROM app.people) x",
    "SELECT ssn FROM app.people UNION SELECT 'x'",
    "SELECT ssn FROM app.people INTERSECT SELECT '531-22-8841'",
    "SELECT text FROM app.computed WHERE text LIKE '%531%'",
    "SELECT (SELECT ssn FROM app.people WHERE id = 1) = '531-22-8841'",
    "SELECT EXISTS (SELECT 1 FROM app.people WHERE ssn LIKE '5%')",
    "SELECT row_to_json(p) FROM app.people p",
    "SELECT p::text FROM app.people p",
    "SELECT to_jsonb(p) -> 'ssn' FROM app.people p",
    "SELECT md5(number) FROM app.simple",
    "SELECT rank() OVER (ORDER BY ssn) FROM app.people",
    "SELECT id FROM app.people LIMIT (SELECT length(ssn) FROM app.people WHERE id = 1)",
    "INSERT INTO app.items (id, label) SELECT id, ssn FROM app.people",
    "UPDATE app.items SET label = p.ssn FROM app.people p WHERE p.id = app.items.id",
    "INSERT INTO app.people VALUES (9, 'Nine', '531-22-8841') ON CONFLICT DO NOTHING",
    "INSERT INTO app.people VALUES (9, 'Nine', '531-22-8841') ON CONFLICT ON CONSTRAINT one_ssn DO NOTHING",
    "INSERT INTO app.people VALUES (9, 'Nine', '531-22-8841') ON CONFLICT (ssn) DO UPDATE SET name = 'x'",
    "EXPLAIN SELECT id FROM app.people WHERE ssn < '5'",
    "EXPLAIN (ANALYZE) SELECT id FROM app.people WHERE ssn < '5'",
    "EXPLAIN (FORMAT XML) SELECT ssn FROM app.people",
    "EXPLAIN (FORMAT TEXT, FORMAT YAML) SELECT ssn FROM app.people",
];

async fn shop(major: Major) -> Shop {
    let rules =
        "    - {name: write-people, effect: Allow, sql: {commands: [Insert, Update, Delete], tables: [app.people]}}";
    let shop = Shop::with(major, rules, "").await.unwrap();
    shop.server.sql(DATABASE, VIEWS).unwrap();
    shop
}

async fn stays_masked(major: Major) {
    let shop = shop(major).await;
    let mut wrong = Vec::new();
    for text in READ {
        let statements: Vec<&str> = text.split("; ").collect();
        let said = psql_async(shop.port, DATABASE, &statements).await.unwrap();
        if leaks(&said.out) || leaks(&said.err) || !said.out.contains("***") {
            wrong.push(format!("{text}\n  out {:?}\n  err {:?}", said.out, said.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let returned = psql_async(
        shop.port,
        DATABASE,
        &[
            "UPDATE app.people SET name = name || '!' WHERE id = 1 RETURNING ssn",
            "INSERT INTO app.people VALUES (9, 'Nine', '531-22-8841') RETURNING *",
            "DELETE FROM app.people WHERE id = 9 RETURNING ssn, id",
        ],
    )
    .await
    .unwrap();
    assert!(
        !leaks(&returned.out) && returned.out.matches(MASKED).count() == 3,
        "{returned:?}"
    );
    shop.world.stop().await;
}

async fn answers_no_question(major: Major) {
    let shop = shop(major).await;
    shop.server.sql(DATABASE, UNIQUE).unwrap();
    let mut wrong = Vec::new();
    for text in ASK {
        let said = psql_async(shop.port, DATABASE, &[text]).await.unwrap();
        if !said.refused() || leaks(&said.err) || !said.out.is_empty() {
            wrong.push(format!("{text}\n  out {:?}\n  err {:?}", said.out, said.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    shop.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_column_stays_masked_on_every_way_out_on_15() {
    stays_masked(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_column_stays_masked_on_every_way_out_on_18() {
    stays_masked(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_column_answers_no_question_on_15() {
    answers_no_question(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_column_answers_no_question_on_18() {
    answers_no_question(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_masked_statements_carry_no_value() {
    let shop = shop(Major::V15).await;
    shop.server.sql(DATABASE, UNIQUE).unwrap();
    let said = psql_async(
        shop.port,
        DATABASE,
        &[
            "INSERT INTO app.people VALUES (9, 'Nine', '531-22-8841')",
            "SELECT ssn::int FROM app.people",
        ],
    )
    .await
    .unwrap();
    let own = said
        .err
        .lines()
        .filter(|line| !line.contains("LINE 1"))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        !own.contains("(531-22-8841)") && !own.contains("invalid input"),
        "{said:?}"
    );
    shop.world.stop().await;
}

/// A function that claims to be immutable is run by the planner, and what it read becomes a constant of the plan.
const FOLDED: &str = "CREATE FUNCTION app.peek() RETURNS text LANGUAGE sql IMMUTABLE AS
        $$SELECT string_agg(E'\\n' || ssn, '') FROM app.people$$;
    CREATE VIEW app.folded AS SELECT id, ssn FROM app.people WHERE name <> app.peek();
    GRANT SELECT ON app.folded TO shop_agent; ANALYZE app.people";

/// Plans of masked relations: the nodes, and nothing the planner knows of their rows.
async fn plans_show_their_shape(major: Major) {
    let shop = shop(major).await;
    shop.server.sql(DATABASE, FOLDED).unwrap();
    let plain = shop.server.sql(DATABASE, "EXPLAIN SELECT ssn FROM app.folded").unwrap();
    assert!(
        leaks(&plain) && plain.contains("width="),
        "the server itself tells: {plain}"
    );
    let mut wire = Wire::login(shop.port, DATABASE).unwrap();
    for text in [
        "EXPLAIN SELECT ssn FROM app.folded",
        "EXPLAIN VERBOSE SELECT ssn FROM app.folded",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT ssn FROM app.folded",
        "EXPLAIN (FORMAT JSON, VERBOSE) SELECT ssn FROM app.folded",
        "PREPARE e AS SELECT ssn FROM app.folded; EXPLAIN EXECUTE e",
    ] {
        let statements: Vec<&str> = text.split("; ").collect();
        let said = psql_async(shop.port, DATABASE, &statements).await.unwrap();
        let out = &said.out;
        assert!(out.contains("Seq Scan") && said.err.is_empty(), "{text}: {said:?}");
        assert!(!leaks(out) && !leaks(&said.err), "{text}: {out}");
        for told in ["cost", "Cost", "width", "Width", "Plan Rows", "<>"] {
            assert!(!out.contains(told), "{text} tells {told}: {out}");
        }
        assert_eq!(out.contains("actual"), text.contains("ANALYZE"), "{text}: {out}");
        let extended = [parse("", text), bind("", "", &[], 1), execute("", 0), sync()];
        if statements.len() == 1 {
            let frames = wire.ask(&extended).unwrap();
            let rows: Vec<String> = frames
                .iter()
                .filter(|frame| frame.kind == b'D')
                .map(|frame| String::from_utf8_lossy(&frame.body).into_owned())
                .collect();
            assert!(
                !rows.is_empty() && !rows.iter().any(|row| leaks(row) || row.contains("width")),
                "{rows:?}"
            );
        }
    }
    // Relations without masks are explained in full.
    let free = psql_async(shop.port, DATABASE, &["EXPLAIN SELECT n FROM app.numbers WHERE n = 7"]).await;
    let free = free.unwrap();
    assert!(free.out.contains("width=") && free.out.contains("(n = 7)"), "{free:?}");
    shop.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_of_masked_relations_show_their_shape_only_on_15() {
    plans_show_their_shape(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_of_masked_relations_show_their_shape_only_on_18() {
    plans_show_their_shape(Major::V18).await;
}

/// What citext brings needs no naming; a stranger's operator does, whatever it is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn citext_needs_no_naming_and_a_stranger_does() {
    let shop = shop(Major::V15).await;
    let made = "CREATE EXTENSION citext; CREATE TABLE app.mails (id int PRIMARY KEY, address citext);
        INSERT INTO app.mails VALUES (1, 'Ada@Example'), (2, 'ben@example'); GRANT SELECT ON app.mails TO shop_agent;
        CREATE FUNCTION public.citext_ne(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
        CREATE OPERATOR public.<> (FUNCTION = public.citext_ne, LEFTARG = text, RIGHTARG = text)";
    shop.server.sql(DATABASE, made).unwrap();
    let texts = [
        "SELECT id FROM app.mails WHERE address = 'ADA@example'",
        "SELECT max(address) FROM app.mails WHERE address LIKE 'BEN%'",
        "SELECT replace(name, 'A', 'B') FROM app.people WHERE id = 1",
        "SELECT 'ADA'::citext = 'ada'",
    ];
    for (text, expected) in texts.iter().zip(["1", "ben@example", "Bda", "t"]) {
        let said = psql_async(shop.port, DATABASE, &[text]).await.unwrap();
        assert_eq!(said.out, expected, "{text}: {said:?}");
    }
    // The operator's function has a name of citext's, and does not belong to it.
    let said = psql_async(shop.port, DATABASE, &["SELECT id FROM app.people WHERE name <> 'Ada'"]).await;
    let said = said.unwrap();
    assert!(said.refused() && said.out.is_empty(), "{said:?}");
    shop.world.stop().await;
}
