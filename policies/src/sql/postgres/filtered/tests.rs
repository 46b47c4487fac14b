//! `sql.filtered` against conditions that are none.
#![allow(clippy::unwrap_used)]

use super::super::shop::bound;

#[test]
fn a_condition_that_is_always_true_is_no_filter() {
    for condition in [
        "true",
        "1=1",
        "1=1 AND true",
        "id = id",
        "id = id OR status = 'x'",
        "NOT false",
        "id IS NOT NULL",
        "id IS NOT NULL OR TRUE",
        "id = 1 OR 1=1",
        "id = 1 OR true",
        "id = id + 0",
        "id - id = 0",
        "coalesce(id, 0) = coalesce(id, 0)",
        "(id = id) IS TRUE",
        "NOT (id <> id)",
        "'a' < 'b'",
        "$1 = $1",
        "now() > '2000-01-01'",
        "exists (SELECT 1)",
        "exists (SELECT 1 FROM app.users)",
        "exists (SELECT 1 FROM app.users WHERE users.id = 1)",
        "(SELECT true)",
        "id IN (SELECT orders.id)",
        "CASE WHEN true THEN true ELSE id = 1 END",
        "(id, status) = (id, status)",
        "id BETWEEN id AND id",
        "orders.id = app.orders.id",
        "NOT (id = 1 AND 1 = 0)",
    ] {
        let update = bound(&format!("UPDATE app.orders SET status = 'x' WHERE {condition}"));
        assert!(!update.filtered, "{condition}");
        let delete = bound(&format!("DELETE FROM app.orders WHERE {condition}"));
        assert!(!delete.filtered, "{condition}");
    }
    assert!(!bound("DELETE FROM app.orders").filtered);
    assert!(!bound("UPDATE app.orders SET status = 'x'").filtered);
}

#[test]
fn a_comparison_of_a_target_column_is_a_filter() {
    for condition in [
        "id = 7",
        "id = $1",
        "7 = id",
        "id IN (1, 2)",
        "id = ANY($1)",
        "id = ANY(ARRAY[1,2])",
        "status LIKE 'x%' AND true",
        "id = 1 OR id = 2",
        "NOT (id = 1)",
        "note IS NULL",
        "note IS NOT NULL",
        "amount BETWEEN 1 AND 2",
        "id < user_id",
        "lower(status) = 'x'",
        "(id, user_id) = (1, 2)",
        "(id, user_id) IN ((1, 2), (3, 4))",
        "user_id IN (SELECT u.id FROM app.users u WHERE u.name = 'x')",
        "exists (SELECT 1 FROM app.users u WHERE u.id = orders.user_id)",
        "orders.id = 3",
        "app.orders.id = 3",
        "status IS DISTINCT FROM 'x'",
        "(id = 1) IS TRUE",
        "id = (SELECT max(u.id) FROM app.users u)",
    ] {
        let update = bound(&format!("UPDATE app.orders SET status = 'x' WHERE {condition}"));
        assert!(update.filtered, "{condition}: {:?}", update.problems);
    }
    assert!(bound("DELETE FROM app.orders o USING app.users u WHERE o.user_id = u.id").filtered);
    assert!(bound("DELETE FROM app.orders WHERE CURRENT OF c").filtered);
}

#[test]
fn a_filter_on_another_relation_is_no_filter() {
    assert!(!bound("DELETE FROM app.orders o USING app.users u WHERE u.id = 1").filtered);
    assert!(!bound("UPDATE app.orders o SET status = 'x' FROM app.users u WHERE u.name = 'a'").filtered);
}

#[test]
fn every_nested_write_counts() {
    assert!(!bound("WITH d AS (DELETE FROM app.orders RETURNING id) SELECT * FROM d WHERE id = 1").filtered);
    assert!(!bound("WITH d AS (DELETE FROM app.orders WHERE id = id) DELETE FROM app.docs WHERE id = 1").filtered);
    assert!(bound("WITH d AS (DELETE FROM app.orders WHERE id = 1 RETURNING id) SELECT * FROM d").filtered);
}

#[test]
fn merge_counts_by_its_join_and_its_conditions() {
    let merge = |on: &str, when: &str| {
        bound(&format!(
            "MERGE INTO app.orders o USING app.users u ON {on} WHEN {when}"
        ))
        .filtered
    };
    assert!(!merge("true", "MATCHED THEN DELETE"));
    assert!(merge("o.user_id = u.id", "MATCHED THEN DELETE"));
    assert!(merge("true", "MATCHED AND o.id = 3 THEN DELETE"));
    assert!(!merge("o.user_id = u.id", "NOT MATCHED BY SOURCE THEN DELETE"));
    assert!(merge("true", "NOT MATCHED THEN INSERT (id) VALUES (1)"));
}

#[test]
fn reads_are_filtered_by_definition() {
    assert!(bound("SELECT * FROM app.orders").filtered);
    assert!(bound("INSERT INTO app.orders (id) VALUES (1)").filtered);
}
