//! Statements from a seed: names in scope are kept with their types, so that nearly all of what comes out is valid.
//!
//! Every result column gets a fresh name or keeps a known one, so that a query can stand inside another one. Aliases
//! shadow real names now and then, because that is where a resolver goes wrong.

use std::fmt::Write as _;

/// What a column holds, as far as expressions care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Int,
    Text,
    Texts,
    Address,
    Other,
}

type Columns = Vec<(String, Type)>;

/// A FROM item in scope.
#[derive(Debug, Clone)]
struct Item {
    alias: String,
    columns: Columns,
    /// Whether `alias` alone is a composite that can be shown.
    row: bool,
}

/// See the module.
pub struct Generator {
    state: u64,
    major: u32,
    names: usize,
}

const TABLES: [(&str, &[(&str, Type)]); 11] = [
    (
        "app.users",
        &[
            ("id", Type::Int),
            ("name", Type::Text),
            ("ssn", Type::Text),
            ("tags", Type::Texts),
            ("home", Type::Address),
            ("moods", Type::Other),
            ("doc", Type::Other),
        ],
    ),
    (
        "app.orders",
        &[
            ("id", Type::Int),
            ("user_id", Type::Int),
            ("total", Type::Int),
            ("note", Type::Text),
        ],
    ),
    (
        "app.events",
        &[("id", Type::Int), ("at", Type::Other), ("who", Type::Text)],
    ),
    (
        "app.events_1",
        &[("id", Type::Int), ("at", Type::Other), ("who", Type::Text)],
    ),
    ("app.base", &[("id", Type::Int), ("a", Type::Text)]),
    (
        "app.derived",
        &[("id", Type::Int), ("a", Type::Text), ("b", Type::Text)],
    ),
    (
        "app.people",
        &[("person", Type::Int), ("number", Type::Text), ("loud", Type::Text)],
    ),
    ("app.nested", &[("inner_number", Type::Text), ("note", Type::Text)]),
    ("app.shifted", &[("z", Type::Text), ("y", Type::Int)]),
    ("app.counted", &[("number", Type::Text), ("n", Type::Other)]),
    ("pg_catalog.pg_class", &[("oid", Type::Other), ("relname", Type::Other)]),
];

impl Generator {
    /// The same seed, the same statements.
    pub fn new(seed: u64, major: u32) -> Generator {
        Generator {
            state: seed | 1,
            major,
            names: 0,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from((self.state >> 16) % end as u64).unwrap()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    /// The next statement: mostly a query, now and then a write that answers rows.
    pub fn statement(&mut self) -> String {
        self.names = 0;
        match self.below(12) {
            0 => self.write(),
            1 => format!("TABLE {}", TABLES[self.below(10)].0),
            _ => self.query(3, &[]).0,
        }
    }

    fn write(&mut self) -> String {
        let (old, new) = match self.major >= 18 && self.one_in(2) {
            true => ("old.", "new."),
            false => ("", "u."),
        };
        let returning = match self.below(3) {
            0 => "*".to_owned(),
            1 => format!("{old}ssn, {new}name AS n, u.tags[1], u.id + 1"),
            _ => format!("{new}home, (SELECT note FROM app.orders o WHERE o.id = u.id), {old}id"),
        };
        match self.below(4) {
            0 => format!("INSERT INTO app.users AS u (id, name) VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn RETURNING {returning}"),
            1 => format!("UPDATE app.users u SET name = 'x' WHERE u.id = 1 RETURNING {returning}"),
            2 => format!("DELETE FROM app.users u USING app.orders WHERE orders.user_id = u.id RETURNING {returning}"),
            _ => "WITH w AS (UPDATE app.users u SET name = 'x' RETURNING u.ssn AS s, u.id) SELECT w.s, o.note FROM w JOIN app.orders o ON o.id = w.id".to_owned(),
        }
    }

    /// A query and its columns. `ctes` are names it may select from.
    fn query(&mut self, depth: usize, ctes: &[Item]) -> (String, Columns) {
        match self.below(8) {
            0 if depth > 0 => self.with(depth - 1, ctes),
            1 if depth > 0 => self.set_operation(depth - 1, ctes),
            2 if depth > 0 => self.recursive(depth - 1),
            _ => self.select(depth, ctes, None),
        }
    }

    fn with(&mut self, depth: usize, outer: &[Item]) -> (String, Columns) {
        let mut ctes = outer.to_vec();
        let mut parts = Vec::new();
        for _ in 0..=self.below(2) {
            let (text, mut columns) = self.query(depth, &ctes);
            // A CTE that hides a table of the same bare name.
            let name = match self.one_in(6) {
                true => "users".to_owned(),
                false => self.fresh("w"),
            };
            if ctes.iter().any(|cte| cte.alias == name) {
                continue;
            }
            let renamed = match self.one_in(3) {
                true => format!(" ({})", self.rename(&mut columns)),
                false => String::new(),
            };
            let how = *self.pick(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
            parts.push(format!("{name}{renamed} AS {how}({text})"));
            ctes.push(Item {
                alias: name,
                columns,
                row: false,
            });
        }
        let (text, columns) = self.select(depth, &ctes, None);
        match parts.is_empty() {
            true => (text, columns),
            false => (format!("WITH {} {text}", parts.join(", ")), columns),
        }
    }

    fn recursive(&mut self, depth: usize) -> (String, Columns) {
        let name = self.fresh("r");
        let columns = vec![("n".to_owned(), Type::Int), ("s".to_owned(), Type::Text)];
        let item = Item {
            alias: name.clone(),
            columns,
            row: false,
        };
        let (text, columns) = self.select(depth.min(1), &[item], None);
        let body = *self.pick(&[
            "SELECT id, ssn FROM app.users UNION ALL SELECT n + 1, s FROM #",
            "SELECT id, note FROM app.orders UNION SELECT n, s || '.' FROM # WHERE n < 3",
            "SELECT 1, 'x'::text UNION ALL SELECT u.id, u.ssn FROM # JOIN app.users u ON u.id = #.n + 1",
        ]);
        let body = body.replace('#', &name);
        (format!("WITH RECURSIVE {name} (n, s) AS ({body}) {text}"), columns)
    }

    fn set_operation(&mut self, depth: usize, ctes: &[Item]) -> (String, Columns) {
        let types: Vec<Type> = (0..=self.below(3))
            .map(|_| *self.pick(&[Type::Int, Type::Text]))
            .collect();
        let (left, columns) = self.select(depth, ctes, Some(&types));
        let (right, _) = self.select(depth, ctes, Some(&types));
        let how = *self.pick(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL"]);
        (format!("({left}) {how} ({right})"), columns)
    }

    /// Fresh names for the first few columns.
    fn rename(&mut self, columns: &mut Columns) -> String {
        let most = columns.len();
        let mut names = Vec::new();
        for (name, _) in columns.iter_mut().take(1 + self.below(most)) {
            *name = self.fresh("k");
            names.push(name.clone());
        }
        names.join(", ")
    }

    fn select(&mut self, depth: usize, ctes: &[Item], types: Option<&[Type]>) -> (String, Columns) {
        let (from, scope) = self.from(depth, ctes);
        let grouped = types.is_none() && self.one_in(10);
        let mut columns = Columns::new();
        let mut shown = Vec::new();
        match types {
            Some(types) => {
                for kind in types {
                    let text = self.of_type(&scope, *kind, depth);
                    shown.push(self.named(text, *kind, &mut columns));
                }
            }
            None => {
                for _ in 0..=self.below(4) {
                    let item = self.shown(&scope, depth, &mut columns);
                    shown.push(item);
                }
            }
        }
        let distinct = if self.one_in(8) && types.is_none() {
            "DISTINCT "
        } else {
            ""
        };
        let mut text = format!("SELECT {distinct}{} FROM {from}", shown.join(", "));
        if self.one_in(4) {
            let column = self.of_type(&scope, Type::Int, 0);
            let _ = write!(text, " WHERE {column} > 1");
        }
        if grouped {
            // Everything shown is grouped by position; what cannot be grouped is turned away, which is counted.
            let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
            let _ = write!(text, " GROUP BY {}", places.join(", "));
        }
        if self.one_in(6) {
            text.push_str(" LIMIT 5");
        }
        (text, columns)
    }

    /// FROM, one to three items in every way to join them, and what is in scope.
    fn from(&mut self, depth: usize, ctes: &[Item]) -> (String, Vec<Item>) {
        let (mut text, first) = self.item(depth, ctes, &[]);
        let mut scope = vec![first];
        for _ in 0..self.below(3) {
            let (next, item) = self.item(depth, ctes, &scope);
            let on = {
                let both = [scope.clone(), vec![item.clone()]].concat();
                self.of_type(&both, Type::Int, 0)
            };
            let _ = match self.below(5) {
                0 => write!(text, ", {next}"),
                1 => write!(text, " CROSS JOIN {next}"),
                2 => write!(text, " LEFT JOIN {next} ON {on} = 1"),
                3 => write!(text, " FULL JOIN {next} ON true"),
                _ => write!(text, " JOIN {next} ON {on} = {on}"),
            };
            scope.push(item);
        }
        if scope.len() == 1 && self.one_in(6) {
            return self.using();
        }
        (text, scope)
    }

    /// A join that merges columns of one name.
    fn using(&mut self) -> (String, Vec<Item>) {
        let how = *self.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "NATURAL JOIN"]);
        let (left, right) = (self.fresh("t"), self.fresh("t"));
        let using = if how.starts_with("NATURAL") { "" } else { " USING (id)" };
        let item = |alias: &str, table: usize| Item {
            alias: alias.to_owned(),
            columns: own(TABLES[table].1),
            row: true,
        };
        let scope = vec![
            // The merged column, which belongs to neither.
            Item {
                alias: String::new(),
                columns: vec![("id".to_owned(), Type::Int)],
                row: false,
            },
            item(&left, 0),
            item(&right, 4),
        ];
        (format!("app.users {left} {how} app.base {right}{using}"), scope)
    }

    fn item(&mut self, depth: usize, ctes: &[Item], lateral: &[Item]) -> (String, Item) {
        let mut alias = self.fresh("t");
        match self.below(12) {
            0..=2 if depth > 0 => {
                let (text, mut columns) = self.query(depth - 1, ctes);
                let renamed = match self.one_in(2) {
                    true => format!(" ({})", self.rename(&mut columns)),
                    false => String::new(),
                };
                let row = false;
                (format!("({text}) AS {alias}{renamed}"), Item { alias, columns, row })
            }
            3 => {
                let (call, columns): (&str, Columns) = match self.below(5) {
                    0 => ("app.pick(1)", own(TABLES[0].1)),
                    1 => ("app.both(2)", own(&[("p", Type::Int), ("q", Type::Text)])),
                    2 => ("app.outs()", own(&[("a", Type::Int), ("b", Type::Text)])),
                    3 => ("app.where_is(1)", own(&[("street", Type::Text), ("zip", Type::Text)])),
                    _ => ("generate_series(1, 3)", vec![(alias.clone(), Type::Int)]),
                };
                let row = false;
                (format!("{call} AS {alias}"), Item { alias, columns, row })
            }
            4 if lateral.iter().any(|item| has(item, Type::Texts)) => {
                let tags = self.column(lateral, Type::Texts).unwrap_or_default();
                let columns = vec![("tag".to_owned(), Type::Text)];
                let row = false;
                (format!("unnest({tags}) AS {alias} (tag)"), Item { alias, columns, row })
            }
            5 if lateral.iter().any(|item| has(item, Type::Text)) => {
                let text = self.column(lateral, Type::Text).unwrap_or_default();
                let columns = vec![("l".to_owned(), Type::Text), ("m".to_owned(), Type::Int)];
                let row = false;
                (
                    format!("LATERAL (SELECT {text} AS l, 1 AS m) AS {alias}"),
                    Item { alias, columns, row },
                )
            }
            6 => {
                let columns = vec![("v".to_owned(), Type::Int), ("x".to_owned(), Type::Text)];
                let row = false;
                (
                    format!("(VALUES (1, 'a'), (2, 'b')) AS {alias} (v, x)"),
                    Item { alias, columns, row },
                )
            }
            7 | 8 if !ctes.is_empty() => {
                let cte = self.pick(ctes).clone();
                let item = Item {
                    alias: alias.clone(),
                    columns: cte.columns,
                    row: false,
                };
                (format!("{} AS {alias}", cte.alias), item)
            }
            _ => {
                let (table, columns) = *self.pick(&TABLES);
                if lateral.is_empty() && self.one_in(8) {
                    // An alias that is another table's name.
                    alias = "orders".to_owned();
                }
                let mut columns = own(columns);
                let only = if self.one_in(12) { "ONLY " } else { "" };
                let renamed = match self.one_in(5) && !table.starts_with("pg_") {
                    true => format!(" ({})", self.rename(&mut columns)),
                    false => String::new(),
                };
                let item = Item {
                    alias: alias.clone(),
                    columns,
                    row: !table.starts_with("pg_"),
                };
                (format!("{only}{table} AS {alias}{renamed}"), item)
            }
        }
    }

    /// One entry of a select list.
    fn shown(&mut self, scope: &[Item], depth: usize, columns: &mut Columns) -> String {
        match self.below(16) {
            0 if columns.is_empty() && scope.iter().all(|item| item.columns.len() < 8) && unique(scope) => {
                let all = scope.iter().flat_map(|item| item.columns.clone());
                columns.extend(all);
                "*".to_owned()
            }
            1 => {
                let item = self.pick(scope).clone();
                let fresh = item
                    .columns
                    .iter()
                    .all(|(name, _)| columns.iter().all(|(own, _)| own != name));
                if !fresh || item.alias.is_empty() || item.alias.starts_with("pg") || item.columns.len() < 2 {
                    return self.named("1".to_owned(), Type::Int, columns);
                }
                if item.columns.iter().any(|(name, _)| name == "relname") {
                    return self.named(format!("{}.relname", item.alias), Type::Other, columns);
                }
                columns.extend(item.columns);
                format!("{}.*", item.alias)
            }
            2 => {
                let row = scope.iter().find(|item| item.row).map(|item| item.alias.clone());
                self.named(row.unwrap_or_else(|| "NULL::int".to_owned()), Type::Other, columns)
            }
            3 => {
                let home = self.column(scope, Type::Address);
                let text = home.map_or_else(|| "'x'::text".to_owned(), |home| format!("({home}).zip"));
                self.named(text, Type::Text, columns)
            }
            4 => {
                let tags = self.column(scope, Type::Texts);
                let text = tags.map_or_else(|| "'x'::text".to_owned(), |tags| format!("{tags}[1]"));
                self.named(text, Type::Text, columns)
            }
            5 | 6 => {
                let text = self.of_type(scope, Type::Text, depth);
                self.named(text, Type::Text, columns)
            }
            7 => {
                let text = self.of_type(scope, Type::Int, depth);
                self.named(text, Type::Int, columns)
            }
            _ => {
                let item = self.pick(scope).clone();
                let (name, kind) = self.pick(&item.columns).clone();
                let text = qualified(&item, &name);
                let kept = columns.iter().all(|(own, _)| *own != name);
                match kept && self.one_in(2) {
                    true => {
                        columns.push((name, kind));
                        text
                    }
                    false => self.named(text, kind, columns),
                }
            }
        }
    }

    /// `text AS fresh`.
    fn named(&mut self, text: String, kind: Type, columns: &mut Columns) -> String {
        let name = self.fresh("c");
        columns.push((name.clone(), kind));
        format!("{text} AS {name}")
    }

    /// A qualified column of a type, if one is in scope.
    fn column(&mut self, scope: &[Item], kind: Type) -> Option<String> {
        let found: Vec<String> = scope
            .iter()
            .flat_map(|item| item.columns.iter().map(move |column| (item, column)))
            .filter(|(_, (_, own))| *own == kind)
            .map(|(item, (name, _))| qualified(item, name))
            .collect();
        (!found.is_empty()).then(|| self.pick(&found).clone())
    }

    /// A value of a type: mostly a bare column, else something made of it.
    fn of_type(&mut self, scope: &[Item], kind: Type, depth: usize) -> String {
        let bare = self.column(scope, kind);
        let Some(bare) = bare else {
            return if kind == Type::Int {
                "7".to_owned()
            } else {
                "'k'::text".to_owned()
            };
        };
        if depth == 0 {
            return bare;
        }
        match (kind, self.below(12)) {
            (Type::Text, 0) => format!("{bare} || '-'"),
            (Type::Text, 1) => format!("coalesce({bare}, 'none')"),
            (Type::Text, 2) => format!("{bare}::text"),
            (Type::Text, 3) => format!("(SELECT max(i.note) FROM app.orders i WHERE i.note = {bare})"),
            (Type::Text, 4) => format!("CASE WHEN {bare} > 'm' THEN {bare} ELSE 'low' END"),
            (Type::Text, 5) => format!("(SELECT {bare})"),
            (Type::Int, 0) => format!("{bare} + 1"),
            (Type::Int, 1) => format!("greatest({bare}, 3)"),
            (Type::Int, 2) => format!("(SELECT i.total FROM app.orders i WHERE i.id = {bare} LIMIT 1)"),
            (Type::Int, 3) => format!("(ARRAY[{bare}])[1]"),
            _ => bare,
        }
    }
}

fn own(columns: &[(&str, Type)]) -> Columns {
    columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

fn has(item: &Item, kind: Type) -> bool {
    item.columns.iter().any(|(_, own)| *own == kind)
}

fn qualified(item: &Item, name: &str) -> String {
    match item.alias.is_empty() {
        true => name.to_owned(),
        false => format!("{}.{name}", item.alias),
    }
}

/// Whether no name comes twice and no item is the server's own, so that `*` gives what is in scope.
fn unique(scope: &[Item]) -> bool {
    let names: Vec<&String> = scope
        .iter()
        .flat_map(|item| item.columns.iter().map(|(name, _)| name))
        .collect();
    let distinct: std::collections::BTreeSet<&String> = names.iter().copied().collect();
    distinct.len() == names.len()
        && !names.iter().any(|name| *name == "relname")
        && scope.iter().all(|item| !item.alias.is_empty())
}
