//! The SQL walk: any text, resolved against a shop with masked columns.
//!
//! The first byte is a bit set: 1 version 18 instead of 15, 2 `standard_conforming_strings` off, 4 temporary tables.
//! Invariants: nothing panics; statements lie in the text, in order; where nothing was understood, nothing is known;
//! and no statement whose answer takes a masked column from a table as it is passes without a mask.

#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use sidegate_policies::api::access_policy::{MaskAs, NoOptions};
use sidegate_policies::engine::decision::MaskRule;
use sidegate_policies::engine::{Completeness, MaskSet};
use sidegate_policies::sql::postgres::plan::{ColumnPlan, ResultPlan};
use sidegate_policies::sql::postgres::shop::{catalog, Shopper};
use sidegate_policies::sql::postgres::{analyse, Analysis, Catalog, Options, Output, Source};
use sidegate_policies::sql::ColumnPattern;

/// The masked column.
const MASKED: &str = "app.users.ssn";

struct Shop {
    catalog: Catalog,
    masks: Arc<MaskSet>,
}

fn shop() -> &'static Shop {
    static SHOP: OnceLock<Shop> = OnceLock::new();
    SHOP.get_or_init(|| Shop {
        catalog: catalog(),
        masks: Arc::new(MaskSet {
            columns: vec![MaskRule {
                pattern: ColumnPattern::parse(MASKED).expect("a pattern"),
                how: MaskAs::Redact(NoOptions {}),
                policy: "agents/masks".into(),
            }],
            detectors: Vec::new(),
        }),
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((bits, text)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let options = Options {
        server_major: if bits & 1 != 0 { 18 } else { 15 },
        standard_conforming_strings: bits & 2 == 0,
    };
    let shopper = Shopper {
        temporary: bits & 4 != 0,
        ..Shopper::default()
    };
    let analysis = analyse(text, &options, &shop().catalog, &shopper);
    in_order(text, &analysis);
    if analysis.statements.is_empty() && analysis.problem.is_some() {
        assert_eq!(analysis.completeness, Completeness::Opaque);
        assert!(
            analysis.facts.tables.known().is_none(),
            "tables of a text that was not understood"
        );
    }
    for statement in &analysis.statements {
        let Ok(plan) = ResultPlan::build(&shop().masks, statement, &shop().catalog) else {
            continue;
        };
        let Output::Rows(columns) = &statement.output else {
            continue;
        };
        for (at, column) in columns.iter().enumerate() {
            let reads = matches!(&column.source, Source::Column(name) if name.to_string() == MASKED);
            let masked = matches!(
                plan.columns().and_then(|planned| planned.get(at)),
                Some(ColumnPlan::Mask(_))
            );
            assert!(!reads || masked, "column {at} passes: {text}");
        }
    }
});

fn in_order(text: &str, analysis: &Analysis) {
    let mut from = 0;
    for statement in &analysis.statements {
        let range = statement.range.clone();
        assert!(
            range.start >= from && text.get(range.clone()).is_some(),
            "a statement at {range:?} of {text}"
        );
        from = range.end;
    }
}
