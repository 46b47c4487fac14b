//! One lease: its material, its two clocks, and what was derived from it.
//!
//! The material is wiped when the last session that holds the lease lets go of it. A lease that goes on is a new handle
//! over the same material. Refuses an answer that says "as before" where nothing was before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sidegate_policies::wire;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// What a lease carries.
pub enum LeaseMaterial {
    /// User and password.
    Password {
        /// The user or role.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A bearer token.
    Bearer {
        /// The user or role named beside it.
        user: Option<String>,
        /// The token.
        token: Secret,
    },
    /// Nothing but a name.
    None {
        /// The user or role.
        user: Option<String>,
    },
}

/// Something computed from a secret, as secret as it.
pub type Derived = Arc<Zeroizing<Vec<u8>>>;

/// How many derived values a lease keeps.
const DERIVED_LIMIT: usize = 16;

/// A lease that is or was good.
pub struct LeaseHandle {
    id: String,
    material: Arc<LeaseMaterial>,
    asked: Instant,
    asked_wall_ms: i64,
    life: Duration,
    derived: Arc<Mutex<HashMap<Vec<u8>, Derived>>>,
}

impl LeaseHandle {
    /// Takes a lease over; nothing where it says that it goes on. Life counts from when the request was sent.
    pub fn new(lease: wire::Lease, asked: Instant, asked_wall_ms: i64) -> Option<Self> {
        let material = match lease.material {
            wire::LeaseMaterial::Password { user, password } => LeaseMaterial::Password {
                user,
                password: Secret::new(password),
            },
            wire::LeaseMaterial::Bearer { user, token } => LeaseMaterial::Bearer {
                user,
                token: Secret::new(token),
            },
            wire::LeaseMaterial::None { user } => LeaseMaterial::None { user },
            // No room logs in with a certificate or signs requests: such a lease is none that could be used here.
            wire::LeaseMaterial::SshCertificate { .. }
            | wire::LeaseMaterial::AwsKeys { .. }
            | wire::LeaseMaterial::Kept => return None,
        };
        Some(LeaseHandle {
            id: lease.id,
            material: Arc::new(material),
            asked,
            asked_wall_ms,
            life: Duration::from_secs(lease.expires_in),
            derived: Arc::default(),
        })
    }

    /// The same lease with another life, counted from when the request to let it go on was sent.
    pub fn prolonged(&self, expires_in: u64, asked: Instant, asked_wall_ms: i64) -> Self {
        LeaseHandle {
            id: self.id.clone(),
            material: Arc::clone(&self.material),
            asked,
            asked_wall_ms,
            life: Duration::from_secs(expires_in),
            derived: Arc::clone(&self.derived),
        }
    }

    /// Its id: safe to record.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The material; only for the code that logs in.
    pub fn expose(&self) -> &LeaseMaterial {
        &self.material
    }

    /// The secret bytes that must never reach the agent.
    pub fn needles(&self) -> Vec<&[u8]> {
        match &*self.material {
            LeaseMaterial::Password { password, .. } => vec![password.expose().as_bytes()],
            LeaseMaterial::Bearer { token, .. } => vec![token.expose().as_bytes()],
            LeaseMaterial::None { .. } => Vec::new(),
        }
    }

    /// Its whole life.
    pub fn life(&self) -> Duration {
        self.life
    }

    /// Time since it was asked for, by whichever clock went further.
    pub fn age(&self) -> Duration {
        let wall = jiff::Timestamp::now()
            .as_millisecond()
            .saturating_sub(self.asked_wall_ms);
        let wall = Duration::from_millis(u64::try_from(wall).unwrap_or(0));
        self.asked.elapsed().max(wall)
    }

    /// When it may no longer be used, counted from the request: expiry less the larger of 5 s and 5 %.
    pub fn hard_stop(&self) -> Duration {
        let margin = Duration::from_secs(5).max(self.life.checked_div(20).unwrap_or_default());
        self.life.saturating_sub(margin)
    }

    /// Whether it may be used now.
    pub fn usable(&self) -> bool {
        self.age() < self.hard_stop()
    }

    /// A value derived from the secret earlier (a salted password), by its public inputs.
    pub fn derived(&self, inputs: &[u8]) -> Option<Derived> {
        self.kept().get(inputs).cloned()
    }

    /// Keeps a derived value as long as the lease lives.
    pub fn keep_derived(&self, inputs: Vec<u8>, value: Derived) {
        let mut kept = self.kept();
        if kept.len() >= DERIVED_LIMIT {
            kept.clear();
        }
        kept.insert(inputs, value);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Derived>> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
