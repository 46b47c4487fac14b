//! Serving the control face: peer credentials in, reports out.
//!
//! Refuses the agent's own user under `--run-as`, and commands by anybody but the starting user and root. The
//! invariant: a decision carries the name the user database gives for the peer's uid.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path as Segment, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::StatusCode;
use nix::unistd::{getgrouplist, Gid, Group, Uid, User};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use sidegate_policies::api::lockdown::LockdownSpec;
use sidegate_policies::api::AccessRequest;
use sidegate_policies::record::Kind;

use super::{
    switch, Decide, Lock, Locked, Restarted, RingName, RolledAuthority, Rotate, RotatedNow, SessionRow, Status, Unlock,
    Unlocked, CREATED, SEPARATION, SESSION,
};
use crate::approvals::people::Person;
use crate::approvals::store::Stored;
use crate::approvals::ApprovalError;
use crate::audit::Event;
use crate::clock::rfc3339;
use crate::config::{Separation, StartError};
use crate::issuer::random;
use crate::lockdown::LockdownError;
use crate::report::Reporter;
use crate::rotation;
use crate::server::serve;

/// What the control face serves from.
pub struct Control {
    /// Reports.
    pub reporter: Arc<Reporter>,
    /// Told when a person asks the broker to stop.
    pub quit: CancellationToken,
}

/// The peer, as the kernel says.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: u32,
    gid: u32,
}

/// Binds the socket, private to its owner. A stale one is replaced: the state's lock says nobody serves it.
pub fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let fail = |source| StartError::Listen {
        address: path.display().to_string(),
        source,
    };
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Serves until the broker stops.
pub async fn run(listener: UnixListener, control: Arc<Control>) {
    let tasks = control.reporter.front.tasks.clone();
    let stop = tasks.stopping();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let Some(peer) = admitted(&stream, &control) else {
            continue;
        };
        let router = router(Arc::clone(&control)).layer(Extension(peer));
        let inner = tasks.clone();
        tasks.spawn("control", serve(stream, false, router, inner));
    }
}

fn admitted(stream: &UnixStream, control: &Control) -> Option<Peer> {
    let cred = stream.peer_cred().ok()?;
    let peer = Peer {
        uid: cred.uid(),
        gid: cred.gid(),
    };
    if control.reporter.separation.is_agent(peer.uid) {
        control.reporter.front.audit.note(Event {
            detail: "the agent's own user reached the control socket",
            ..Event::new(Kind::Refused, "control.refused")
        });
        return None;
    }
    Some(peer)
}

fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/requests", get(requests))
        .route("/requests/{name}/decide", post(decide))
        .route("/sessions", get(sessions))
        .route("/lock", post(lock))
        .route("/unlock", post(unlock))
        .route("/rotate", post(rotate))
        .route("/jwks", get(jwks))
        .route("/roll-authority", post(roll_authority))
        .route("/sidecar-restarted", post(restarted))
        .route("/shutdown", post(shutdown))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such call") })
        .with_state(control)
}

/// The keys as the public face shows them, for whoever uploads them.
async fn jwks(State(control): State<Arc<Control>>) -> Json<serde_json::Value> {
    let front = &control.reporter.front;
    Json(front.issuer.jwks(front.clock.now()))
}

/// A refusal for people.
struct Refuse(StatusCode, String);

fn refuse(status: StatusCode, message: impl Into<String>) -> Refuse {
    Refuse(status, message.into())
}

impl IntoResponse for Refuse {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({"error": self.1}))).into_response()
    }
}

type Shared = State<Arc<Control>>;

async fn status(State(control): Shared) -> Json<Status> {
    Json(control.reporter.status())
}

/// Open requests, or with `?all=true` also finished ones; oldest first.
async fn requests(State(control): Shared, RawQuery(query): RawQuery) -> Json<Vec<AccessRequest>> {
    let every = query.as_deref() == Some("all=true");
    let mut all = control.reporter.front.approvals.list();
    all.reverse();
    let shown = all.iter().filter(|stored| every || !stored.is_over());
    Json(
        shown
            .map(|stored| shown_request(stored, &control.reporter.separation))
            .collect(),
    )
}

async fn decide(
    State(control): Shared,
    Extension(peer): Extension<Peer>,
    Segment(name): Segment<String>,
    request: Request,
) -> Result<Json<AccessRequest>, Refuse> {
    let word: Decide = body(request).await?;
    let person = person(peer, &control.reporter.separation)?;
    let front = Arc::clone(&control.reporter.front);
    let tasks = front.tasks.clone();
    let decided = tasks
        .blocking(move || {
            let decided = front.approvals.decide(&name, &person, word.verdict, word.reason);
            if let Err(error) = &decided {
                front.audit.note(Event {
                    subject: &person.name,
                    object: &name,
                    detail: &format!("{:?} refused: {error}", word.verdict),
                    ..Event::new(Kind::Refused, "approval.refused")
                });
            }
            decided
        })
        .await
        .ok_or_else(|| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the decision could not be stored"))?;
    let decided = decided.map_err(|error| {
        let status = match &error {
            ApprovalError::NotFound => StatusCode::NOT_FOUND,
            ApprovalError::NotAllowed(_) => StatusCode::FORBIDDEN,
            ApprovalError::NotPending(_) => StatusCode::CONFLICT,
            ApprovalError::Unrecorded(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refuse(status, error.to_string())
    })?;
    Ok(Json(shown_request(&decided, &control.reporter.separation)))
}

async fn lock(
    State(control): Shared,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<Locked>, Refuse> {
    let asked = Instant::now();
    commanding(peer)?;
    let lock: Lock = body(request).await?;
    if lock.freeze.is_empty() || lock.reason.trim().is_empty() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "a lockdown needs a reason and something to freeze",
        ));
    }
    let front = Arc::clone(&control.reporter.front);
    let until = lock.for_seconds.map(|seconds| {
        let ms = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        rfc3339(front.clock.now_ms().saturating_add(ms))
    });
    let spec = LockdownSpec {
        reason: lock.reason,
        until,
        action: lock.action,
        freeze: lock.freeze,
    };
    let name = made_name()?;
    let (tasks, named) = (front.tasks.clone(), name.clone());
    let done = tasks
        .blocking(move || switch::freeze(&front.audit, &front.lockdowns, peer.uid, &named, spec))
        .await;
    let (revision, unrecorded) = settled(done)?;
    let mut locked = acknowledged(&control, name, revision, asked).await;
    locked.unrecorded = unrecorded.map(|error| error.to_string());
    Ok(Json(locked))
}

async fn unlock(
    State(control): Shared,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<Unlocked>, Refuse> {
    commanding(peer)?;
    let asked: Unlock = body(request).await?;
    let names = if asked.names.is_empty() {
        control.reporter.front.lockdowns.written()
    } else {
        asked.names
    };
    let mut revision = control.reporter.front.lockdowns.now().set.revision;
    for name in &names {
        let front = Arc::clone(&control.reporter.front);
        let (tasks, named) = (front.tasks.clone(), name.clone());
        let done = tasks
            .blocking(move || switch::thaw(&front.audit, &front.lockdowns, peer.uid, &named))
            .await;
        revision = settled(done)?;
    }
    Ok(Json(Unlocked { names, revision }))
}

/// What a lock or unlock did, or what to say to the person.
fn settled<T>(done: Option<Result<T, LockdownError>>) -> Result<T, Refuse> {
    let done = done.ok_or_else(|| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the lockdown could not be stored"))?;
    done.map_err(|error| {
        let status = match &error {
            LockdownError::Unknown(_) => StatusCode::NOT_FOUND,
            LockdownError::Exists(_) => StatusCode::CONFLICT,
            LockdownError::Name => StatusCode::BAD_REQUEST,
            LockdownError::Unrecorded(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refuse(status, error.to_string())
    })
}

/// Waits for the sidecars' confirmations, at most two seconds, and reports them.
async fn acknowledged(control: &Control, name: String, revision: u64, asked: Instant) -> Locked {
    let streams = &control.reporter.front.streams;
    let mut changed = streams.watch();
    let until = tokio::time::sleep(Duration::from_secs(2));
    let mut until = std::pin::pin!(until);
    loop {
        let all = streams.list();
        let acked: Vec<_> = all.iter().filter(|sidecar| sidecar.deny_revision >= revision).collect();
        let report = Locked {
            name: name.clone(),
            revision,
            sidecars: u64::try_from(all.len()).unwrap_or(u64::MAX),
            acknowledged: u64::try_from(acked.len()).unwrap_or(u64::MAX),
            sessions_closed: acked.iter().fold(0, |sum, sidecar| sum.saturating_add(sidecar.closed)),
            took_us: u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX),
            unrecorded: None,
        };
        if report.acknowledged == report.sidecars {
            return report;
        }
        tokio::select! {
            () = until.as_mut() => return report,
            moved = changed.changed() => {
                if moved.is_err() {
                    return report;
                }
            }
        }
    }
}

async fn sessions(State(control): Shared) -> Json<Vec<SessionRow>> {
    Json(control.reporter.sessions())
}

async fn restarted(State(control): Shared, Extension(peer): Extension<Peer>) -> Result<Json<Restarted>, Refuse> {
    commanding(peer)?;
    let Some(cluster) = &control.reporter.cluster else {
        let message = "restarts of sidecars are the kubelet's to tell in a cluster";
        return Err(refuse(StatusCode::BAD_REQUEST, message.to_owned()));
    };
    let instance = cluster.restarted();
    let instance = instance.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(Restarted { instance }))
}

/// Emergency rotation; on record with the uid that asked.
async fn rotate(
    State(control): Shared,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<RotatedNow>, Refuse> {
    commanding(peer)?;
    let asked: Rotate = body(request).await?;
    let mut rings = if asked.rings.is_empty() {
        RingName::ALL.to_vec()
    } else {
        asked.rings
    };
    rings.sort_unstable();
    rings.dedup();
    let front = Arc::clone(&control.reporter.front);
    let records = Arc::clone(&control.reporter.records);
    let (tasks, now) = (front.tasks.clone(), front.clock.now());
    let by = format!("uid:{}", peer.uid);
    let done = tasks
        .blocking(move || rotation::emergency(&front.issuer, &records, &front.audit, &rings, &by, now))
        .await
        .ok_or_else(|| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the keys could not be rotated"))?;
    Ok(Json(RotatedNow {
        rotated: done.rotated,
        failed: done.failed.iter().map(ToString::to_string).collect(),
        notice: rotation::NOTICE.to_owned(),
        unrecorded: done.unrecorded,
    }))
}

/// A new authority; on record with the uid that asked.
async fn roll_authority(
    State(control): Shared,
    Extension(peer): Extension<Peer>,
) -> Result<Json<RolledAuthority>, Refuse> {
    commanding(peer)?;
    let front = Arc::clone(&control.reporter.front);
    let (tasks, now, by) = (front.tasks.clone(), front.clock.now(), format!("uid:{}", peer.uid));
    let rolled = tasks
        .blocking(move || rotation::roll_authority(&front.authority, &front.audit, &by, now))
        .await
        .ok_or_else(|| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the authority could not be replaced"))?;
    let rolled = rolled.map_err(|error| refuse(StatusCode::CONFLICT, error.to_string()))?;
    Ok(Json(RolledAuthority {
        authority: rolled.authority,
        until: rolled.until,
        notice: rotation::AUTHORITY_NOTICE.to_owned(),
    }))
}

async fn shutdown(State(control): Shared, Extension(peer): Extension<Peer>) -> Result<StatusCode, Refuse> {
    commanding(peer)?;
    control.quit.cancel();
    Ok(StatusCode::NO_CONTENT)
}

/// Commands are for the starting user and root.
fn commanding(peer: Peer) -> Result<(), Refuse> {
    if peer.uid == 0 || peer.uid == Uid::effective().as_raw() {
        return Ok(());
    }
    Err(refuse(
        StatusCode::FORBIDDEN,
        "only the user who started Sidegate, or root, may do this",
    ))
}

/// The person behind a uid, by the user database.
fn person(peer: Peer, separation: &Separation) -> Result<Person, Refuse> {
    let unknown = || refuse(StatusCode::FORBIDDEN, format!("uid {} has no name here", peer.uid));
    let user = User::from_uid(Uid::from_raw(peer.uid))
        .ok()
        .flatten()
        .ok_or_else(unknown)?;
    let name = std::ffi::CString::new(user.name.clone()).map_err(|_| unknown())?;
    let groups = getgrouplist(&name, Gid::from_raw(peer.gid)).unwrap_or_default();
    let names = groups
        .into_iter()
        .filter_map(|gid| Group::from_gid(gid).ok().flatten())
        .map(|group| group.name);
    Ok(Person {
        name: format!("unix:{}", user.name),
        groups: names.collect(),
        is_agent: separation.is_agent(peer.uid),
    })
}

fn made_name() -> Result<String, Refuse> {
    let bytes = random::<4>().map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("lock-{hex}"))
}

async fn body<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, Refuse> {
    let bytes = axum::body::to_bytes(request.into_body(), 64 * 1024).await;
    let bytes = bytes.map_err(|_| refuse(StatusCode::BAD_REQUEST, "the body is too long"))?;
    serde_json::from_slice(&bytes).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}

/// A request as people see it.
fn shown_request(stored: &Stored, separation: &Separation) -> AccessRequest {
    let mut request = stored.request.clone();
    let annotations = &mut request.metadata.annotations;
    annotations.insert(CREATED.to_owned(), rfc3339(stored.created_ms));
    annotations.insert(SESSION.to_owned(), stored.session.clone());
    annotations.insert(SEPARATION.to_owned(), separation.to_string());
    request
}
