//! Generated policies and operations: the engine agrees with the slow interpreter, and narrowing is monotone.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{json, Value};

use super::expr::Scene;
use super::fixtures::*;
use super::operation::{Completeness, ConnectFacts, Fact, Facts, Operation, Phase, TcpFacts, Verb};
use super::reference::World;
use super::{Effect, Subject, TargetId};
use crate::api::access_policy::SqlCommand::{self, *};
use crate::bundle::Bundle;
use crate::compile::compile;
use crate::sql::facts::{ParamValue, Part, PartRelation};
use crate::sql::{CommandSet, SqlFacts};

const COMMANDS: [(SqlCommand, &str); 8] = [
    (Select, "Select"),
    (Insert, "Insert"),
    (Update, "Update"),
    (Drop, "Drop"),
    (Create, "Create"),
    (Set, "Set"),
    (Notify, "Notify"),
    (Transaction, "Transaction"),
];
const RELATIONS: [&str; 4] = ["app.a", "app.b", "log.c", "pg_catalog.pg_class"];
const COLUMNS: [&str; 5] = ["app.a.id", "app.a.ssn", "app.b.id", "log.c.line", "lost.x.y"];
const FUNCTIONS: [&str; 3] = ["app.f", "pg_catalog.pg_read_file", "log.\"Odd\""];
const WORDS: [&str; 3] = ["jobs", "work_mem", "app.tenant"];
const WHENS: [&str; 26] = [
    "sql.filtered",
    "!sql.filtered",
    "sql.tables.size() == 1",
    "'app.a' in sql.tables",
    "sql.tables.exists(t, t.startsWith('app.'))",
    "sql.columns.all(c, c != 'app.a.ssn')",
    "sql.limit != null && sql.limit <= 100",
    "sql.limit == null || sql.limit > 5",
    "sql.params[0] < 100",
    "sql.params.size() == 0",
    "sql.params.exists(p, p == 'x')",
    "'write' in sql.effects",
    "sql.functions.exists(f, f.matches('^pg_'))",
    "sql.copy == 'none' && sql.statements < 3",
    "sql.database.endsWith('op') || sql.inTransaction",
    "subject.labels.agent == 'triage'",
    "has(subject.labels.agent)",
    "subject.labels['missing'] == 'x'",
    "target.labels.tier == 'gold' && target.protocol == 'Postgres'",
    "subject.namespace + '/' + subject.serviceAccount == 'agents/support'",
    "now.getHours() == 12",
    "now < timestamp('2020-01-01T00:00:00Z')",
    "connect.database == 'shop'",
    "connect.database != null",
    "sql.commands.size() > 1 ? sql.returning : !sql.explain",
    "'Drop' in sql.commands && sql.settings.size() >= 0",
];

fn matcher() -> impl Strategy<Value = Value> {
    let patterns = |list: &'static [&'static str], most: usize| subsequence(list, 0..=most);
    (
        subsequence(&COMMANDS[..], 0..=3),
        patterns(&["app.*", "app.a", "*.*", "log.c", "app.b*"], 2),
        option::weighted(0.25, patterns(&["app.a.id", "app.a.*", "app.*.*", "log.c.line"], 3)),
        option::weighted(0.25, patterns(&["app.f", "pg_catalog.*", "log.\"Odd\""], 2)),
        option::weighted(0.15, patterns(&["work_mem", "app.*"], 2)),
        option::weighted(0.15, patterns(&["jobs", "*"], 1)),
    )
        .prop_map(|(commands, tables, columns, functions, settings, channels)| {
            let commands: Vec<&str> = commands.into_iter().map(|(_, name)| name).collect();
            json!({
                "commands": commands, "tables": tables, "columns": columns.unwrap_or_default(),
                "functions": functions.unwrap_or_default(), "settings": settings.unwrap_or_default(),
                "channels": channels.unwrap_or_default(),
            })
        })
}

fn rule(effects: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let when = option::weighted(0.4, select(&WHENS[..]));
    (select(effects), option::weighted(0.8, matcher()), when).prop_map(|(effect, matcher, when)| {
        let mut rule = json!({"name": "x", "effect": effect});
        if let Some(matcher) = &matcher {
            rule["sql"] = matcher.clone();
        }
        if let Some(when) = when.filter(|when| matcher.is_none() || !when.contains("connect.")) {
            rule["when"] = json!(when);
        }
        if effect == "Ask" {
            rule["ask"] = json!({"approvers": [{"user": "ann"}]});
        }
        rule
    })
}

fn masks() -> impl Strategy<Value = Value> {
    let how = select(vec![
        json!({"null": {}}),
        json!({"redact": {}}),
        json!({"hash": {}}),
        json!({"token": {}}),
        json!({"keepFirst": {"count": 2}}),
        json!({"keepLast": {"count": 4}}),
        json!({"keepLast": {"count": 2}}),
    ]);
    let columns = subsequence(&["app.a.ssn", "app.a.*", "app.*.id", "log.c.line"][..], 1..=2);
    vec(
        (columns, how).prop_map(|(columns, how)| json!({"columns": columns, "as": how})),
        0..=2,
    )
    .prop_map(Value::from)
}

fn body(effects: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let limits = select(vec![json!({}), json!({"rows": 10}), json!({"rows": 5, "bytes": "1Mi"})]);
    let mode = prop_oneof![4 => Just("Enforce"), 1 => Just("Observe")];
    (vec(rule(effects), 0..=4), masks(), limits, mode).prop_map(|(mut rules, masks, limits, mode)| {
        for (at, rule) in rules.iter_mut().enumerate() {
            rule["name"] = json!(format!("r{at}"));
        }
        json!({"rules": rules, "masks": masks, "limits": limits, "mode": mode})
    })
}

fn own(name: &'static str) -> impl Strategy<Value = Value> {
    let subjects = select(vec![
        json!([{"serviceAccount": {"namespace": "agents", "name": "support"}}]),
        json!([{"podSelector": {"matchLabels": {"agent": "triage"}}}]),
        json!([{"serviceAccount": {"namespace": "agents", "name": "other"}}]),
    ]);
    (body(&["Allow", "Allow", "Allow", "Deny", "Ask"]), subjects).prop_map(move |(mut body, subjects)| {
        body["subjects"] = subjects;
        policy(name, body)
    })
}

fn cluster(name: &'static str) -> impl Strategy<Value = Value> {
    let scope = select(vec![
        json!({}),
        json!({}),
        json!({"targetRefs": [{"namespace": "data", "name": "stream"}]}),
        json!({"targetSelector": {"matchLabels": {"tier": "gold"}}}),
        json!({"subjects": [{"podSelector": {"matchLabels": {"agent": "other"}}}]}),
    ]);
    (body(&["Deny", "Ask"]), scope).prop_map(move |(mut body, scope)| {
        for (key, value) in scope.as_object().unwrap() {
            body[key] = value.clone();
        }
        floor(name, body)
    })
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    let first = own("first");
    (
        first,
        option::of(own("second")),
        option::weighted(0.4, cluster("floor")),
    )
        .prop_map(|(first, second, floor)| [Some(first), second, floor].into_iter().flatten().collect())
}

fn fact<T: std::fmt::Debug + Clone + 'static>(known: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Fact<T>> {
    prop_oneof![8 => known.prop_map(Fact::Known), 1 => Just(Fact::Unknown), 1 => Just(Fact::Later)].boxed()
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let relation = prop_oneof![
        5 => select(&RELATIONS[..]).prop_map(|name| PartRelation::Known(relation(name))),
        2 => Just(PartRelation::None),
        1 => Just(PartRelation::Unknown),
    ];
    let one = (select(&COMMANDS[..]), relation, prop::bool::weighted(0.2));
    vec(
        one.prop_map(|((command, _), relation, rides_along)| Part {
            command,
            relation,
            rides_along,
        }),
        0..=3,
    )
}

fn params() -> impl Strategy<Value = Vec<ParamValue>> {
    let value = prop_oneof![
        Just(ParamValue::Null),
        Just(ParamValue::Int(5)),
        Just(ParamValue::Int(500)),
        Just(ParamValue::Text("x".into())),
        Just(ParamValue::Bool(true)),
        Just(ParamValue::Float(7.5)),
    ];
    vec(value, 0..=2)
}

fn statement_facts() -> impl Strategy<Value = SqlFacts> {
    let listed = |list: &'static [&'static str]| subsequence(list, 0..=1).prop_map(|list| names(&list));
    let columns = subsequence(&COLUMNS[..], 0..=3).prop_map(|list| list.iter().map(|name| column(name)).collect());
    let functions = fact(listed(&FUNCTIONS));
    let unlisted = prop_oneof![3 => Just(true), 1 => Just(false)];
    (
        (parts(), fact(columns), functions, unlisted),
        (fact(option::of(select(vec![1i64, 50, 500]))), fact(params())),
        (any::<[bool; 4]>(), listed(&WORDS), listed(&WORDS), 0u32..4),
    )
        .prop_map(
            |((parts, columns, functions, unlisted), (limit, params), (flags, settings, channels, count))| {
                let tables: Vec<_> = parts
                    .iter()
                    .filter_map(|part| match &part.relation {
                        PartRelation::Known(relation) => Some(relation.clone()),
                        _ => None,
                    })
                    .collect();
                let unresolved = parts.iter().any(|part| part.relation == PartRelation::Unknown);
                SqlFacts {
                    statements: count,
                    commands: parts.iter().map(|part| part.command).collect::<CommandSet>(),
                    tables: if unresolved { Fact::Unknown } else { Fact::Known(tables) },
                    parts,
                    columns,
                    unlisted_functions: if unlisted {
                        functions.clone()
                    } else {
                        Fact::Known(Vec::new())
                    },
                    functions,
                    limit,
                    params,
                    filtered: flags[0],
                    returning: flags[1],
                    explain: flags[2],
                    in_transaction: flags[3],
                    unlisted_settings: settings.clone(),
                    settings,
                    channels,
                    database: "shop".into(),
                    ..SqlFacts::default()
                }
            },
        )
}

/// What an operation is made of; borrowed from by the operation itself.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
enum Made {
    Sql(SqlFacts, Completeness),
    Connect(ConnectFacts),
    Tcp(TcpFacts),
}

impl Made {
    fn operation(&self) -> Operation<'_> {
        let (facts, completeness) = match self {
            Made::Sql(facts, completeness) => (Facts::Sql(facts), *completeness),
            Made::Connect(facts) => (Facts::Connect(facts), Completeness::Exact),
            Made::Tcp(facts) => (Facts::Tcp(facts), Completeness::Exact),
        };
        let verb = if matches!(self, Made::Connect(_)) {
            Verb::Connect
        } else {
            Verb::Statement
        };
        Operation {
            verb,
            action: "made",
            completeness,
            facts,
        }
    }

    fn target(&self, stream: bool) -> TargetId {
        match self {
            Made::Sql(..) => shop(),
            Made::Tcp(_) => TargetId::new("data", "stream"),
            Made::Connect(_) => TargetId::new("data", if stream { "stream" } else { "shop" }),
        }
    }
}

fn made() -> impl Strategy<Value = Made> {
    let how_well = prop_oneof![8 => Just(Completeness::Partial), 1 => Just(Completeness::Opaque)];
    let database = option::of(select(vec!["shop".to_owned(), "other".to_owned()]));
    prop_oneof![
        8 => (statement_facts(), how_well).prop_map(|(facts, how_well)| Made::Sql(facts, how_well)),
        1 => database.prop_map(|database| Made::Connect(ConnectFacts { database })),
        1 => Just(Made::Tcp(TcpFacts::default())),
    ]
}

fn who(labelled: bool) -> Subject {
    let mut subject = agent();
    if !labelled {
        subject.labels.clear();
    }
    subject
}

fn agree(bundle: &Bundle, made: &Made, phase: Phase, subject: &Subject, stream: bool) -> Result<(), TestCaseError> {
    let set = compile(bundle).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let target = made.target(stream);
    let op = made.operation();
    let scene = Scene {
        subject,
        target: set.target(&target).unwrap(),
        op: &op,
        phase,
        now: noon(),
    };
    let world = World { bundle, scene };
    let (said, observed) = world.decide();
    let decision = set.decide(subject, &target, &op, phase, noon());
    prop_assert_eq!(decision.effect, said.effect, "{:?}", decision);
    prop_assert_eq!(decision.open, said.open, "{:?}", decision);
    if decision.effect != Effect::Allow {
        let rules = decision.rules.iter().map(ToString::to_string).collect();
        prop_assert_eq!(&said.rules, &rules);
    }
    prop_assert_eq!(
        decision.observed.as_ref().map(|observed| observed.effect),
        observed.map(|said| said.effect)
    );
    for name in COLUMNS {
        let column = column(name);
        let (how, limits) = world.obligations(&column);
        let relation = &column.relation;
        let mask = decision.masks.column(&relation.schema, &relation.name, &column.column);
        prop_assert_eq!(mask.map(|mask| mask.how), how);
        prop_assert_eq!(decision.limits, limits);
    }
    Ok(())
}

/// How much an effect lets through: less is stricter.
fn lets(effect: Effect) -> u8 {
    match effect {
        Effect::Allow => 2,
        Effect::Ask => 1,
        Effect::Deny => 0,
    }
}

/// Adds something that may only narrow. True: it may turn a refusal into a question, but never into a pass.
fn narrowed(policies: &[Value], how: u8, rule: &Value, mask: &Value) -> (Vec<Value>, bool) {
    let mut after = policies.to_vec();
    let mut rule = rule.clone();
    rule["name"] = json!("added");
    let asks = rule["effect"] == "Ask";
    match how {
        0 => after[0]["spec"]["rules"].as_array_mut().unwrap().push(rule),
        1 => after.push(floor("added", json!({"rules": [rule]}))),
        2 => after.push(policy("added", json!({"rules": [rule]}))),
        3 => after[0]["spec"]["masks"].as_array_mut().unwrap().push(mask.clone()),
        _ => after[0]["spec"]["limits"] = json!({"rows": 1, "bytes": "1Ki", "perMinute": 1}),
    }
    (after, asks && how != 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    /// POL-13: the engine agrees with the slow reference interpreter on generated policies and operations.
    #[test]
    fn the_engine_agrees_with_the_reference(
        policies in policies(),
        operations in vec((made(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.8)), 8),
    ) {
        let bundle = bundle(&policies);
        for (made, structure, stream, labelled) in &operations {
            let phase = if *structure { Phase::Structure } else { Phase::Final };
            agree(&bundle, made, phase, &who(*labelled), *stream)?;
        }
    }

    /// POL-13: adding a Deny, an Ask, a mask, a limit or a ClusterAccessPolicy never allows more.
    #[test]
    fn narrowing_never_allows_more(
        policies in policies(),
        operations in vec(statement_facts(), 8),
        rule in rule(&["Deny", "Ask"]),
        how in 0u8..5,
    ) {
        let mask = json!({"columns": ["app.*.*"], "as": {"redact": {}}});
        let (after, may_ask) = narrowed(&policies, how, &rule, &mask);
        let (before, after) = (set(&policies), set(&after));
        for facts in &operations {
            let (old, new) = (judged(&before, facts), judged(&after, facts));
            prop_assert!(lets(new.effect) <= lets(old.effect) || (may_ask && new.effect == Effect::Ask),
                "{:?} became {:?}", old, new);
            prop_assert_eq!(old.limits.strictest(&new.limits), new.limits);
            for mask in &old.masks.columns {
                prop_assert!(new.masks.columns.contains(mask) || how == 3);
            }
        }
    }
}
