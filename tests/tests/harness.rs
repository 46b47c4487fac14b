//! The harness itself: servers of both majors start, answer, and are gone when dropped.

use sidegate_tests::postgres::{Major, Options, Postgres};

#[test]
fn a_server_of_each_major_starts_and_answers() {
    for major in [Major::V15, Major::V18] {
        let server = Postgres::start(major).unwrap();
        let version = server.sql("postgres", "show server_version_num").unwrap();
        assert!(version.starts_with(&major.number().to_string()), "{version}");
    }
}

#[test]
fn a_server_with_tls_serves_its_certificate() {
    for major in [Major::V15, Major::V18] {
        let server = Postgres::with(
            major,
            Options {
                tls: Some("db.test".into()),
                ..Options::default()
            },
        )
        .unwrap();
        assert_eq!(
            server
                .sql("postgres", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
                .unwrap(),
            "t"
        );
    }
}
