//! The login at a real server: the strongest mechanism it offers, bound to its certificate; weaker ones only where the
//! Target's one field says so, and then told by every record; never a downgrade.

use std::time::Duration;

use sidegate_tests::middle;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::{psql_async, Said};
use sidegate_tests::shop::{self, DATABASE, PASSWORD, ROLE};
use sidegate_tests::told::{events, values};
use sidegate_tests::{ports, wire};

/// What the Target says of the line.
enum Line<'a> {
    Plain,
    /// TLS verified against this authority.
    Tls(&'a str),
}

/// How a world's only login went.
struct Seen {
    said: Said,
    mechanisms: Vec<String>,
    weakenings: Vec<String>,
    protocols: Vec<String>,
    everything: String,
}

fn server(major: Major, hba: &str, tls: bool) -> Postgres {
    let options = Options {
        hba: vec![hba.to_owned()],
        settings: vec!["log_connections = on".into()],
        tls: tls.then(|| "db.internal".to_owned()),
    };
    shop::server(major, options).unwrap()
}

/// The old form of a stored password, which md5 and cleartext logins need.
fn store_md5(server: &Postgres) {
    let sql = format!("SET password_encryption = 'md5'; ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'");
    server.sql(DATABASE, &sql).unwrap();
}

fn configuration(server: u16, local: u16, line: &Line<'_>, weak: &str) -> String {
    let tls = match line {
        Line::Plain => "tls: {mode: Disabled}".to_owned(),
        Line::Tls(pem) => shop::tls_by(pem),
    };
    shop::configuration(server, local, "", "").replace("tls: {mode: Disabled}", &format!("{tls}\n  weakLogin: {weak}"))
}

/// A whole world for one login by stock psql.
async fn login(server: u16, line: Line<'_>, weak: &str) -> Seen {
    let local = ports::free().unwrap();
    let world = shop::setup(configuration(server, local, &line, weak))
        .start()
        .await
        .unwrap();
    let said = psql_async(local, DATABASE, &["SELECT 'in'"]).await.unwrap();
    let folder = world.stop().await;
    let events = events(&folder.path().join("state")).unwrap();
    let texts = |name: &str| -> Vec<String> {
        let found = values(&events, name);
        found
            .iter()
            .flat_map(|value| match value {
                serde_json::Value::Array(items) => items.clone(),
                one => vec![one.clone()],
            })
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    };
    Seen {
        said,
        mechanisms: texts("mechanism"),
        weakenings: texts("weakenings"),
        protocols: texts("protocol"),
        everything: serde_json::to_string(&events).unwrap(),
    }
}

impl Seen {
    fn entered(&self, mechanism: &str) {
        assert_eq!((self.said.out.as_str(), self.said.code), ("in", 0), "{:?}", self.said);
        assert_eq!(self.mechanisms, [mechanism]);
        self.kept();
    }

    fn refused(&self, words: &str) {
        assert_ne!(self.said.code, 0, "{:?}", self.said);
        assert!(self.said.err.contains(words), "{:?}", self.said);
        assert!(self.mechanisms.is_empty(), "{:?}", self.mechanisms);
        self.kept();
    }

    /// The password stands nowhere.
    fn kept(&self) {
        assert!(!self.everything.contains(PASSWORD) && !self.said.err.contains(PASSWORD));
    }
}

const SCRAM: &str = "host all all 127.0.0.1/32 scram-sha-256";
const SCRAM_TLS: &str = "hostssl all all 127.0.0.1/32 scram-sha-256";

/// SCRAM bound to the certificate; the proof that the server took part is that it refuses the same login when another
/// certificate, as good as its own to the gate, stands in between.
async fn bound(major: Major) {
    let server = server(major, SCRAM_TLS, true);
    let trusted = server.authority.pem().to_owned();
    let seen = login(server.port, Line::Tls(&trusted), "Refuse").await;
    seen.entered("SCRAM-SHA-256-PLUS");
    assert!(seen.weakenings.is_empty(), "{:?}", seen.weakenings);
    let newest = if major == Major::V18 { "3.2" } else { "3.0" };
    assert!(
        seen.protocols.iter().any(|protocol| protocol == newest),
        "{:?}",
        seen.protocols
    );
    let log = server.log();
    assert!(
        log.contains("method=scram-sha-256") && log.contains("SSL enabled"),
        "{log}"
    );
    let middle = middle::start(&server.authority, server.port).await.unwrap();
    let seen = login(middle.port(), Line::Tls(&trusted), "Refuse").await;
    seen.refused("the target refused the login");
    assert!(
        server.log().contains("SCRAM channel binding check failed"),
        "{}",
        server.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_over_tls_is_bound_to_the_certificate_on_15() {
    bound(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_over_tls_is_bound_to_the_certificate_on_18() {
    bound(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_is_never_weaker_than_the_target_says() {
    let plain = server(Major::V15, SCRAM, false);
    let seen = login(plain.port, Line::Plain, "Refuse").await;
    seen.entered("SCRAM-SHA-256");
    assert!(plain.log().contains("method=scram-sha-256"));
    // It has no TLS: the Target wants it.
    login(plain.port, Line::Tls(plain.authority.pem()), "Anywhere")
        .await
        .refused("declined TLS");
    // It has TLS, of an authority the Target does not trust.
    let server = server(Major::V18, SCRAM, true);
    let seen = login(server.port, Line::Tls(plain.authority.pem()), "Anywhere").await;
    seen.refused("FATAL");
    assert!(!server
        .log()
        .contains("connection authenticated: identity=\"shop_agent\""));
}

/// md5 and cleartext: refused by default, allowed by the field, within TLS or anywhere, and recorded.
async fn weak(major: Major, method: &str, mechanism: &str) {
    let words = "the Target does not allow it";
    let server = server(major, &format!("host all all 127.0.0.1/32 {method}"), true);
    store_md5(&server);
    let trusted = server.authority.pem().to_owned();
    let identity = format!("connection authenticated: identity=\"{ROLE}\"");
    login(server.port, Line::Tls(&trusted), "Refuse").await.refused(words);
    login(server.port, Line::Plain, "Refuse").await.refused(words);
    assert!(!server.log().contains(&identity), "{}", server.log());
    let seen = login(server.port, Line::Tls(&trusted), "InsideTLS").await;
    seen.entered(mechanism);
    assert_eq!(seen.weakenings, ["weakLogin: InsideTLS"]);
    assert!(server.log().contains(&identity), "{}", server.log());
    let seen = login(server.port, Line::Plain, "Anywhere").await;
    seen.entered(mechanism);
    assert!(
        seen.weakenings.contains(&"weakLogin: Anywhere".to_owned()),
        "{:?}",
        seen.weakenings
    );
    // Without TLS the narrower word is a mistake of the configuration, and said so.
    let local = ports::free().unwrap();
    let error = shop::setup(configuration(server.port, local, &Line::Plain, "InsideTLS"))
        .start()
        .await;
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("weakLogin"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn md5_needs_the_targets_word_and_is_recorded_on_15() {
    weak(Major::V15, "md5", "md5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleartext_password_needs_the_targets_word_and_is_recorded_on_18() {
    weak(Major::V18, "password", "cleartext").await;
}

/// Both sides are negotiated by themselves: what the agent speaks says nothing about what the server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_negotiates_its_own_protocol() {
    for major in [Major::V15, Major::V18] {
        let shop = shop::Shop::start(major).await.unwrap();
        let port = shop.port;
        let agents = tokio::task::spawn_blocking(move || {
            for (minor, length) in [(0, 4), (2, 32)] {
                let mut wire = wire::Wire::login_as(port, DATABASE, minor).unwrap();
                assert_eq!(wire.key.as_ref().unwrap().1.len(), length, "3.{minor} on {major:?}");
                assert!(wire.alive().unwrap());
            }
        });
        tokio::time::timeout(Duration::from_secs(60), agents)
            .await
            .unwrap()
            .unwrap();
        let folder = shop.world.stop().await;
        let events = events(&folder.path().join("state")).unwrap();
        let wanted = if major == Major::V18 { "3.2" } else { "3.0" };
        let spoken: Vec<_> = values(&events, "settings");
        assert_eq!(spoken.len(), 2);
        assert!(
            spoken.iter().all(|settings| settings["protocol"] == wanted),
            "{spoken:?}"
        );
    }
}
