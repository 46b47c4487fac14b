//! The people's face: what was recorded, for those of a cluster who may see it.
//!
//! People prove who they are as they would to a kubelet: by a certificate of the cluster's client authority, or by a
//! token that the API server vouches for. Then the API server says whether they may (SubjectAccessReview on virtual
//! resources of the group `sidegate.dev`). Nothing here changes anything. Refuses everybody else, in words for people.
//!
//! | call | right | answer |
//! |---|---|---|
//! | `GET /v1/sessions[?namespace=NAME]` | `list sessions` there, or everywhere | list of [`SessionRow`], oldest first |
//! | `GET /v1/sessions/{id}/replay?as=FORM` | `get sessions/content` in the agent's namespace | the session, told |
//! | `GET /v1/pods/{namespace}/{name}` | `get pods` there | list of [`SidecarReport`] |
//!
//! The invariant: no byte of a record leaves before the audit has on its disk who looks at what.

pub mod listen;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as Segment, RawQuery, Request, State};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{HeaderValue, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::StatusCode;
use sidegate_policies::record::replay::{tell, Form};
use sidegate_policies::record::Kind;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch, Semaphore};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::attest::Unavailable;
use crate::audit::Event;
use crate::control::{SessionRow, SidecarReport};
use crate::records::{Records, SessionKeys};
use crate::report::Reporter;

/// The group of our virtual resources.
const GROUP: &str = "sidegate.dev";
/// Calls of the API server at once: whoever comes here is nobody yet.
const ASKED_AT_ONCE: usize = 16;
/// Sessions told at once.
const TOLD_AT_ONCE: usize = 8;
/// What of a session waits for a slow reader: pieces, and bytes of each.
const PIECES: usize = 8;
const PIECE: usize = 16 << 10;
/// So long a reader may take over one piece.
const SLOW: Duration = Duration::from_secs(30);

/// Somebody the cluster knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visitor {
    /// User name.
    pub name: String,
    /// UID, where there is one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What authenticators say besides.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do, in RBAC's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish<'a> {
    /// API group.
    pub group: &'a str,
    /// Verb.
    pub verb: &'a str,
    /// Resource.
    pub resource: &'a str,
    /// Part of it, or nothing.
    pub subresource: &'a str,
    /// Namespace; empty: all of them.
    pub namespace: &'a str,
    /// Name; empty: every one.
    pub name: &'a str,
}

/// Who knows people and their rights: a cluster.
pub trait Registry: Send + Sync {
    /// Whose token it is; nothing for one that is nobody's.
    fn of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Visitor>, Unavailable>>;

    /// Whether somebody may do something.
    fn may<'a>(&'a self, who: &'a Visitor, wish: &'a Wish<'a>) -> BoxFuture<'a, Result<bool, Unavailable>>;

    /// The authorities of client certificates as PEM, whenever they change; empty: none is believed.
    fn authorities(&self) -> watch::Receiver<String>;
}

/// What the face serves from.
struct Face {
    reporter: Arc<Reporter>,
    registry: Arc<dyn Registry>,
    asking: Semaphore,
    telling: Arc<Semaphore>,
}

/// A refusal in words for people.
struct Refuse(StatusCode, String);

impl IntoResponse for Refuse {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({"error": self.1}))).into_response()
    }
}

impl From<Unavailable> for Refuse {
    fn from(Unavailable: Unavailable) -> Self {
        let said =
            "the API server does not answer the broker, so it is not known who you are or what you may; try again";
        Refuse(StatusCode::SERVICE_UNAVAILABLE, said.to_owned())
    }
}

/// The routes.
fn router(reporter: Arc<Reporter>, registry: Arc<dyn Registry>) -> Router {
    let face = Arc::new(Face {
        reporter,
        registry,
        asking: Semaphore::new(ASKED_AT_ONCE),
        telling: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
    });
    Router::new()
        .route("/v1/sessions", get(sessions))
        .route("/v1/sessions/{id}/replay", get(replay))
        .route("/v1/pods/{namespace}/{name}", get(pod))
        .fallback(|| async { Refuse(StatusCode::NOT_FOUND, "there is no such call".to_owned()) })
        .layer(from_fn_with_state(Arc::clone(&face), authenticate))
        .with_state(face)
}

/// Lets nobody in whom the cluster does not know. A certificate was verified with the handshake.
async fn authenticate(State(face): State<Arc<Face>>, mut request: Request, next: Next) -> Response {
    let certified = request.extensions().get::<listen::Certified>().cloned();
    let visitor = match certified {
        Some(listen::Certified(visitor)) => Ok(Some(visitor)),
        None => face.of_token(bearer(&request)).await,
    };
    let mut response = match visitor {
        Ok(Some(visitor)) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Ok(None) => {
            face.reporter.front.budget.nobody();
            let said = "the cluster does not know this certificate or token";
            Refuse(StatusCode::UNAUTHORIZED, said.to_owned()).into_response()
        }
        Err(refuse) => refuse.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The token that a request carries.
fn bearer(request: &Request) -> Option<Zeroizing<String>> {
    let header = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    Some(Zeroizing::new(header.strip_prefix("Bearer ")?.trim().to_owned()))
}

impl Face {
    async fn of_token(&self, token: Option<Zeroizing<String>>) -> Result<Option<Visitor>, Refuse> {
        let Some(token) = token else {
            return Ok(None);
        };
        let _turn = self.asking.acquire().await.map_err(|_| Unavailable)?;
        Ok(self.registry.of_token(&token).await?)
    }

    /// Passes who may; says what is missing to who may not.
    async fn allowed(&self, who: &Visitor, wish: Wish<'_>) -> Result<(), Refuse> {
        let turn = self.asking.acquire().await.map_err(|_| Unavailable)?;
        let may = self.registry.may(who, &wish).await?;
        drop(turn);
        if may {
            return Ok(());
        }
        let part = match wish.subresource {
            "" => wish.resource.to_owned(),
            part => format!("{}/{part}", wish.resource),
        };
        let place = match wish.namespace {
            "" => "in all namespaces".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let said = format!(
            "User \"{}\" cannot {} resource \"{part}\" in API group \"{}\" {place}",
            who.name, wish.verb, wish.group
        );
        self.refused(&who.name, wish.name, &said);
        Err(Refuse(StatusCode::FORBIDDEN, said))
    }

    fn refused(&self, subject: &str, object: &str, detail: &str) {
        self.reporter.front.audit.note(Event {
            subject,
            object,
            detail,
            ..Event::new(Kind::Refused, "record.refused")
        });
    }

    /// On record before anything leaves (test `who_may_reads_a_session_and_nobody_else_does`).
    async fn on_record(&self, event: &'static str, who: &Visitor, object: &str, detail: String) -> Result<(), Refuse> {
        let (audit, name, object) = (
            Arc::clone(&self.reporter.front.audit),
            who.name.clone(),
            object.to_owned(),
        );
        let write = move || {
            audit.record(Event {
                subject: &name,
                object: &object,
                detail: &detail,
                ..Event::new(Kind::Issued, event)
            })
        };
        match self.reporter.front.tasks.blocking(write).await {
            Some(Ok(())) => Ok(()),
            _ => {
                let said = "it cannot be recorded who looks, so nothing is shown; try later";
                Err(Refuse(StatusCode::SERVICE_UNAVAILABLE, said.to_owned()))
            }
        }
    }
}

type Shared = State<Arc<Face>>;

/// Namespace of the agent.
fn namespace(row: &SessionRow) -> &str {
    row.subject.split('/').next().unwrap_or_default()
}

async fn sessions(
    State(face): Shared,
    Extension(who): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<SessionRow>>, Refuse> {
    let wanted = parameter(query.as_deref(), "namespace").unwrap_or_default();
    let wish = Wish {
        group: GROUP,
        verb: "list",
        resource: "sessions",
        subresource: "",
        namespace: &wanted,
        name: "",
    };
    face.allowed(&who, wish).await?;
    let mut rows = face.reporter.sessions();
    rows.retain(|row| wanted.is_empty() || namespace(row) == wanted);
    let place = match wanted.as_str() {
        "" => "all namespaces",
        place => place,
    };
    face.on_record("record.listed", &who, place, format!("{} session(s)", rows.len()))
        .await?;
    Ok(Json(rows))
}

async fn replay(
    State(face): Shared,
    Extension(who): Extension<Visitor>,
    Segment(id): Segment<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refuse> {
    let asked = parameter(query.as_deref(), "as").unwrap_or_else(|| Form::Text.as_str().to_owned());
    let form = Form::ALL
        .into_iter()
        .find(|form| form.as_str() == asked)
        .ok_or_else(|| {
            let said = "as: write text, json, csv or asciicast";
            Refuse(StatusCode::BAD_REQUEST, said.to_owned())
        })?;
    let row = the_one(face.reporter.sessions(), &id)?;
    let wish = Wish {
        group: GROUP,
        verb: "get",
        resource: "sessions",
        subresource: "content",
        namespace: namespace(&row),
        name: &row.id,
    };
    face.allowed(&who, wish).await?;
    let session = Uuid::parse_str(&row.id).map_err(|_| not_there(&id))?;
    let turn = Arc::clone(&face.telling).try_acquire_owned().map_err(|_| {
        let said = "many read sessions now; try again in a moment";
        Refuse(StatusCode::SERVICE_UNAVAILABLE, said.to_owned())
    })?;
    face.on_record("record.read", &who, &row.id, format!("as {asked}"))
        .await?;
    let (send, mut receive) = mpsc::channel(PIECES);
    let records = Arc::clone(&face.reporter.records);
    let tasks = face.reporter.front.tasks.clone();
    face.reporter.front.tasks.spawn("replay", async move {
        let _turn = turn;
        tasks.blocking(move || told(&records, session, form, &send)).await;
    });
    let pieces = futures_util::stream::poll_fn(move |context| receive.poll_recv(context));
    let mut response = Response::new(Body::from_stream(pieces));
    let kind = match form {
        Form::Json => "application/jsonl",
        Form::Csv => "text/csv; charset=utf-8",
        Form::Text | Form::Asciicast => "text/plain; charset=utf-8",
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

async fn pod(
    State(face): Shared,
    Extension(who): Extension<Visitor>,
    Segment((namespace, name)): Segment<(String, String)>,
) -> Result<Json<Vec<SidecarReport>>, Refuse> {
    let wish = Wish {
        group: "",
        verb: "get",
        resource: "pods",
        subresource: "",
        namespace: &namespace,
        name: &name,
    };
    face.allowed(&who, wish).await?;
    let open = face.reporter.front.streams.open().into_iter();
    let its = open.filter(|stream| stream.who.namespace == namespace && stream.who.pod == name);
    let now_ms = face.reporter.front.clock.now_ms();
    Ok(Json(its.map(|stream| stream.report.aged(now_ms)).collect()))
}

/// The one session whose id begins so.
fn the_one(rows: Vec<SessionRow>, id: &str) -> Result<SessionRow, Refuse> {
    let id = id.to_ascii_lowercase();
    let mut fitting = rows.into_iter().filter(|row| !id.is_empty() && row.id.starts_with(&id));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(not_there(&id)),
        (Some(_), Some(_)) => {
            let said = format!("{id} fits more than one session; give more of its id");
            Err(Refuse(StatusCode::CONFLICT, said))
        }
    }
}

fn not_there(id: &str) -> Refuse {
    let said =
        format!("this broker knows no session {id} (it lists its last 10,000; a copy of its store has the others)");
    Refuse(StatusCode::NOT_FOUND, said)
}

/// Tells a session in pieces. What goes wrong breaks the answer off, so that nobody takes a part for the whole.
fn told(records: &Records, session: Uuid, form: Form, to: &mpsc::Sender<io::Result<Bytes>>) {
    let keys = SessionKeys::open(records.root()).ok();
    let look_up = |id| keys.as_ref().and_then(|keys| keys.get(id));
    let mut out = io::BufWriter::with_capacity(PIECE, Pieces(to));
    let told = tell(records.root(), session, &look_up, form, &mut out);
    let told = told.map_err(io::Error::other).and_then(|()| out.flush());
    if let Err(error) = told {
        // Whoever asked may be gone.
        let _ = to.blocking_send(Err(error));
    }
}

struct Pieces<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        // Whoever stops reading gives their turn to somebody else.
        let sent = tokio::time::timeout(SLOW, self.0.send(Ok(Bytes::copy_from_slice(piece))));
        match Handle::current().block_on(sent) {
            Ok(Ok(())) => {}
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A parameter of a query. Values here are names: nothing in them is escaped.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    let found = pairs.into_iter().find(|(key, _)| *key == name);
    found
        .map(|(_, value)| value.to_owned())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(id: &str) -> SessionRow {
        SessionRow {
            id: id.to_owned(),
            subject: "agents/support".to_owned(),
            ..SessionRow::default()
        }
    }

    #[test]
    fn a_session_is_named_by_the_beginning_of_its_id_if_that_is_its_alone() {
        let rows = || vec![row("0190a6c2-aa"), row("0190a6c2-bb"), row("0190ffff-cc")];
        let found = |id: &str| the_one(rows(), id).map_err(|Refuse(status, _)| status.as_u16());
        assert_eq!(found("0190F").unwrap().id, "0190ffff-cc");
        assert_eq!(found("0190a6c2").unwrap_err(), 409);
        assert_eq!(found("77").unwrap_err(), 404);
        assert_eq!(found("").unwrap_err(), 404, "nothing is named");
    }

    #[test]
    fn a_parameter_that_is_empty_is_none() {
        assert_eq!(parameter(Some("as=json&namespace="), "namespace"), None);
        assert_eq!(parameter(Some("x=1&as=json"), "as").unwrap(), "json");
        assert_eq!(parameter(None, "as"), None);
    }
}
