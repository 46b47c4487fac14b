//! Run-time settings: which ones anyone may change, and which ones decide what a text means.
//!
//! What is on neither list has to be named by a rule. A harmless setting changes how answers look or how much work
//! the session's own statements may take, never what a name means, what is masked or what is written.

/// What changing a setting amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Anyone may.
    Harmless,
    /// Sidegate's reading of the session rests on it: pinned at login, and changed only where no fact matters.
    Pinned,
    /// A rule has to name it.
    Other,
}

const HARMLESS: &[&str] = &[
    "application_name",
    "array_nulls",
    "bytea_output",
    "check_function_bodies",
    "client_min_messages",
    "constraint_exclusion",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "cursor_tuple_fraction",
    "datestyle",
    "default_statistics_target",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "effective_cache_size",
    "extra_float_digits",
    "from_collapse_limit",
    "geqo",
    "geqo_effort",
    "geqo_threshold",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "jit_above_cost",
    "jit_inline_above_cost",
    "jit_optimize_above_cost",
    "join_collapse_limit",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "max_parallel_workers_per_gather",
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "seq_page_cost",
    "statement_timeout",
    "synchronize_seqscans",
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_user_timeout",
    "timezone",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_timeout",
    "xmlbinary",
    "xmloption",
];

const PINNED: &[&str] = &[
    "backslash_quote",
    "client_encoding",
    "escape_string_warning",
    "role",
    "row_security",
    "search_path",
    "session_authorization",
    "session_preload_libraries",
    "session_replication_role",
    "standard_conforming_strings",
    "transform_null_equals",
];

/// What changing this setting amounts to, whatever the value.
pub fn class(name: &str) -> Setting {
    let name = name.to_ascii_lowercase();
    // The planner's switches are many and none of them changes an answer.
    if HARMLESS.contains(&name.as_str()) || name.starts_with("enable_") {
        Setting::Harmless
    } else if PINNED.contains(&name.as_str()) {
        Setting::Pinned
    } else {
        Setting::Other
    }
}

/// What setting it to this constant amounts to: some values of a setting only repeat what is pinned, or protect.
pub fn class_of_value(name: &str, value: Option<&str>) -> Setting {
    let on = |value: &str| {
        ["on", "true", "yes", "1"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word))
    };
    let utf8 = |value: &str| {
        let letters = value.bytes().filter(u8::is_ascii_alphanumeric);
        letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"utf8")
    };
    match (name.to_ascii_lowercase().as_str(), value) {
        ("standard_conforming_strings" | "transaction_read_only" | "default_transaction_read_only", Some(value))
            if on(value) =>
        {
            Setting::Harmless
        }
        ("client_encoding", Some(value)) if utf8(value) || value.eq_ignore_ascii_case("unicode") => Setting::Harmless,
        // With row_security off a query that row security would change is refused by the server: it only protects.
        ("row_security", Some(_)) => Setting::Harmless,
        (name, _) => class(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_meaning_of_a_text_is_never_harmless() {
        for name in [
            "search_path",
            "SEARCH_PATH",
            "standard_conforming_strings",
            "client_encoding",
            "role",
        ] {
            assert_eq!(class(name), Setting::Pinned, "{name}");
        }
        for name in ["session_authorization", "session_replication_role"] {
            assert_eq!(class(name), Setting::Pinned, "{name}");
        }
        for name in [
            "default_transaction_read_only",
            "transaction_read_only",
            "work_mem",
            "my.variable",
            "log_statement",
        ] {
            assert_eq!(class(name), Setting::Other, "{name}");
        }
    }

    #[test]
    fn values_that_repeat_the_pin_or_protect_are_harmless() {
        assert_eq!(class_of_value("client_encoding", Some("UTF-8")), Setting::Harmless);
        assert_eq!(class_of_value("client_encoding", Some("GBK")), Setting::Pinned);
        assert_eq!(class_of_value("client_encoding", None), Setting::Pinned);
        assert_eq!(
            class_of_value("standard_conforming_strings", Some("on")),
            Setting::Harmless
        );
        assert_eq!(
            class_of_value("standard_conforming_strings", Some("off")),
            Setting::Pinned
        );
        assert_eq!(class_of_value("transaction_read_only", Some("on")), Setting::Harmless);
        assert_eq!(class_of_value("transaction_read_only", Some("off")), Setting::Other);
    }
}
