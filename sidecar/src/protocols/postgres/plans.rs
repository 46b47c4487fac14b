//! Plans kept for texts that come again: by the whole text, or by its shape for clients that paste values into texts.
//!
//! A key is the text (or its shape) and everything else that can change its meaning; the cache compares whole keys,
//! under a hash keyed per process, so that no crafted text borrows another's verdict. What looks at session objects
//! (EXECUTE, FETCH) is never kept. A text with a literal that no analysis depends on is kept by shape only: the next
//! one will hold another value. Bounded by bytes, emptied by every new bundle and catalog through the scope.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use moka::Equivalent;
use sidegate_policies::sql::postgres::shape::{Pinned, Shape};
use sidegate_policies::sql::postgres::StatementKind;

use super::facts::{Plan, Planned, Scope};

/// Texts above this are not kept.
const MAX_TEXT: usize = 64 * 1024;
/// Bytes of plans kept.
const BYTES: u64 = 32 << 20;
/// What one plan counts at least: 4,096 of them fill the cache.
const LEAST_WEIGHT: u32 = 8 * 1024;

/// A key that owns its text.
struct Key {
    text: Box<[u8]>,
    scope: Arc<Scope>,
    in_transaction: bool,
}

/// A key to look up with: nothing is copied for it.
struct Sought<'a> {
    text: &'a [u8],
    scope: &'a Arc<Scope>,
    in_transaction: bool,
}

impl Key {
    fn sought(&self) -> Sought<'_> {
        Sought {
            text: &self.text,
            scope: &self.scope,
            in_transaction: self.in_transaction,
        }
    }
}

impl PartialEq for Sought<'_> {
    fn eq(&self, other: &Self) -> bool {
        let scope = Arc::ptr_eq(self.scope, other.scope) || self.scope == other.scope;
        self.in_transaction == other.in_transaction && self.text == other.text && scope
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.sought() == other.sought()
    }
}

impl Eq for Key {}

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.text);
        self.in_transaction.hash(state);
        (self.scope.generation, self.scope.epoch).hash(state);
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sought().hash(state);
    }
}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self == key.sought()
    }
}

/// A plan, and the literals a text of its shape must share with the one it was made of.
#[derive(Clone)]
struct Shaped {
    plan: Arc<Plan>,
    pinned: Arc<Pinned>,
}

/// Plans of this sidecar's sessions.
pub struct PlanCache {
    texts: moka::sync::Cache<Key, Arc<Planned>>,
    shapes: moka::sync::Cache<Key, Shaped>,
}

impl Default for PlanCache {
    fn default() -> Self {
        PlanCache {
            texts: cache(BYTES / 2),
            shapes: cache(BYTES / 2),
        }
    }
}

fn cache<V: Clone + Send + Sync + 'static>(bytes: u64) -> moka::sync::Cache<Key, V> {
    let weigh = |key: &Key, _: &V| {
        u32::try_from(key.text.len().saturating_mul(8))
            .unwrap_or(u32::MAX)
            .max(LEAST_WEIGHT)
    };
    moka::sync::Cache::builder().max_capacity(bytes).weigher(weigh).build()
}

/// What a look-up found.
pub enum Kept {
    /// A plan for this text.
    Plan(Arc<Planned>),
    /// None yet; the text's shape, if it has one, for [`PlanCache::put`].
    Missing(Option<Shape>),
}

impl PlanCache {
    /// A plan for this text under this scope.
    pub fn get(&self, text: &str, scope: &Arc<Scope>, in_transaction: bool) -> Kept {
        if text.len() > MAX_TEXT {
            return Kept::Missing(None);
        }
        let by_text = || {
            self.texts.get(&Sought {
                text: text.as_bytes(),
                scope,
                in_transaction,
            })
        };
        let by_shape = |shape: &Shape| {
            let kept = self.shapes.get(&Sought {
                text: shape.key(),
                scope,
                in_transaction,
            })?;
            let agrees = shape.agrees(text, &kept.pinned);
            agrees.then(|| Arc::new(Planned::new(text, kept.plan)))
        };
        // Where a text's shape is cheap to tell, it is asked for first: most such texts are kept by it. The scanner costs
        // more than a look-up.
        let plain = Shape::plain(text);
        let found = match &plain {
            Some(Some(shape)) => by_shape(shape).or_else(by_text),
            Some(None) | None => by_text(),
        };
        if let Some(plan) = found {
            return Kept::Plan(plan);
        }
        if let Some(shape) = plain {
            return Kept::Missing(shape);
        }
        let shape = Shape::scanned(text);
        match shape.as_ref().and_then(by_shape) {
            Some(plan) => Kept::Plan(plan),
            None => Kept::Missing(shape),
        }
    }

    /// Keeps a plan, unless it depends on objects of one session.
    pub fn put(&self, planned: &Arc<Planned>, shape: Option<&Shape>, in_transaction: bool) {
        let own = |kind: &StatementKind| {
            !matches!(
                kind,
                StatementKind::Plain
                    | StatementKind::Transaction(_)
                    | StatementKind::Set { .. }
                    | StatementKind::Reset(_)
                    | StatementKind::Show
            )
        };
        let bound = planned.analysis.statements.iter().any(|statement| own(&statement.kind));
        if planned.text.len() > MAX_TEXT || bound {
            return;
        }
        let key = |text: &[u8]| Key {
            text: text.into(),
            scope: planned.scope.clone(),
            in_transaction,
        };
        let shaped = shape.and_then(|shape| Some((shape, shape.pinned(&planned.text, &planned.analysis.free)?)));
        match shaped {
            Some((shape, pinned)) => {
                let plan = planned.plan.clone();
                let pinned = Arc::new(pinned);
                self.shapes.insert(key(shape.key()), Shaped { plan, pinned });
            }
            None => self.texts.insert(key(planned.text.as_bytes()), planned.clone()),
        }
    }
}
