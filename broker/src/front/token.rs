//! `/token`: a pod-bound token and a proof in, a session token or a target's access token out.
//!
//! RFC 8693 exchange and `client_credentials` with the same token as `client_assertion` run one path. Refuses
//! repeated parameters, actor tokens, types that do not fit, and more than one target. The invariant: a scope is
//! never wider than the Target says, and a frozen workload gets a session but no credential.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::Json;
use http::header::CONTENT_TYPE;
use sidegate_policies::api::target::{Credential, TokenCredential};
use sidegate_policies::check::OWN;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::TokenResponse;

use super::caller::{attestation_refused, proof_refused, refused_to, single};
use super::{body, Front, Refusal, MAX_BODY};
use crate::attest::{NotAttested, Presented};
use crate::audit::{Event, More};
use crate::dpop::Call;
use crate::index::Offer;
use crate::issuer::{Issued, Workload, SESSION_SCOPE};
use crate::jwt::{kid_of, Slot};
use crate::lockdown::About;
use crate::spans;

/// The grant type of RFC 8693.
pub const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// A JWT as subject token.
pub const TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// An access token as issued.
pub const TYPE_ACCESS: &str = "urn:ietf:params:oauth:token-type:access_token";
/// A JWT as client assertion.
pub const ASSERTION_JWT: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The handler.
pub async fn exchange(State(front): State<Arc<Front>>, request: Request) -> Result<Response, Refusal> {
    let proof = single(request.headers(), "dpop")?.map(<[u8]>::to_vec);
    let form = form(request).await?;
    let (slot, token) = presented(&form)?;
    let call = Call {
        method: "POST",
        path: "/token",
        token: None,
    };
    let key = front
        .dpop
        .check(proof.as_deref(), call)
        .map_err(|error| proof_refused(&front, error, true))?;
    let denied = front.lockdowns.now();
    let now_ms = front.clock.now_ms();
    let frozen = |id: &str| denied.token(id, now_ms);
    let admit = |pod_uid: &str| front.budget.exchange(pod_uid).is_ok();
    let since = Instant::now();
    let mut presented = Presented::default();
    let attested = front
        .attestor
        .attest_told(slot, token, &key, (&frozen, &admit), &mut presented);
    let who = attested.await;
    front.metrics.attested(since.elapsed(), who.as_ref().map(|_| ()));
    let who = who.map_err(|error| {
        match error {
            // Counted there: a flood is not an event per call.
            NotAttested::TooMany => front.budget.say(&front.audit),
            _ => not_attested(&front, &presented, &error, since),
        }
        attestation_refused(&error)
    })?;
    spans::of_pod(&who.subject.pod_uid);
    front.budget.know(&key.thumbprint());
    is_named_right(&front, &form, &who)?;
    let answer = match asked_target(&form)?.map(str::to_owned) {
        Some(audience) if audience != front.issuer.url() => {
            let tasks = front.tasks.clone();
            let minted = tasks
                .blocking(move || target_token(&front, &who, &audience, &form, (&presented, since)))
                .await;
            minted.unwrap_or_else(|| Err(Refusal::unavailable()))?
        }
        _ => session_token(&front, &who, &key.thumbprint(), form.get("scope"), (&presented, since))?,
    };
    Ok(Json(answer).into_response())
}

/// Audits a caller who is not attested, with what its token says where that is known to be the cluster's word.
fn not_attested(front: &Front, presented: &Presented, error: &NotAttested, since: Instant) {
    front.audit.note(Event {
        subject: &presented.user,
        pod_uid: &presented.pod_uid,
        detail: &error.to_string(),
        more: More {
            pod: &presented.pod,
            node: &presented.node,
            credential_id: &presented.credential_id,
            took: Some(since.elapsed()),
            ..More::NONE
        },
        ..Event::new(Kind::Refused, "token.refused")
    });
}

/// The token presented, by grant type. One that does not belong to the grant is refused, not ignored.
fn presented(form: &BTreeMap<String, String>) -> Result<(Slot, &str), Refusal> {
    let get = |name: &str| form.get(name).map(String::as_str);
    // An actor token means delegation, which nobody has enabled: never treat it as a plain exchange.
    if form.contains_key("actor_token") || form.contains_key("actor_token_type") {
        return Err(Refusal::invalid_request());
    }
    match get("grant_type") {
        Some(EXCHANGE) => {
            if get("subject_token_type") != Some(TYPE_JWT) || form.contains_key("client_assertion") {
                return Err(Refusal::invalid_request());
            }
            if get("requested_token_type").is_some_and(|wanted| wanted != TYPE_ACCESS) {
                return Err(Refusal::invalid_request());
            }
            Ok((
                Slot::ServiceAccount,
                get("subject_token").ok_or_else(Refusal::invalid_request)?,
            ))
        }
        Some("client_credentials") => {
            if get("client_assertion_type") != Some(ASSERTION_JWT) || form.contains_key("subject_token") {
                return Err(Refusal::invalid_request());
            }
            Ok((
                Slot::ClientAssertion,
                get("client_assertion").ok_or_else(Refusal::invalid_request)?,
            ))
        }
        Some(_) => Err(Refusal::unsupported_grant_type()),
        None => Err(Refusal::invalid_request()),
    }
}

/// At most one target, in `audience` or `resource`.
fn asked_target(form: &BTreeMap<String, String>) -> Result<Option<&str>, Refusal> {
    match (form.get("audience"), form.get("resource")) {
        (Some(_), Some(_)) => Err(Refusal::invalid_target()),
        (None, Some(resource)) if resource.contains('#') => Err(Refusal::invalid_target()),
        (one, other) => Ok(one.or(other).map(String::as_str)),
    }
}

/// RFC 7521 section 4.2: a `client_id` beside an assertion names the assertion's own subject, or the call is refused.
fn is_named_right(front: &Front, form: &BTreeMap<String, String>, who: &Workload) -> Result<(), Refusal> {
    let own = who.client_id();
    match form.get("client_id") {
        Some(named) if *named != own => {
            refused_to(front, "token.refused", who, "client_id names another client");
            Err(Refusal::invalid_client())
        }
        _ => Ok(()),
    }
}

fn session_token(
    front: &Front,
    who: &Workload,
    thumbprint: &str,
    asked: Option<&String>,
    (presented, since): (&Presented, Instant),
) -> Result<TokenResponse, Refusal> {
    if asked.is_some_and(|asked| asked.split(' ').all(|scope| scope != SESSION_SCOPE)) {
        return Err(Refusal::invalid_scope());
    }
    let issued = front.issuer.session(who, thumbprint, front.clock.now());
    let issued = issued.map_err(|_| Refusal::unavailable())?;
    let more = More {
        credential_id: &presented.credential_id,
        asked: asked.map_or("", String::as_str),
        granted: SESSION_SCOPE,
        took: Some(since.elapsed()),
        ..More::of(who)
    };
    let (client, kid) = (who.client_id(), kid_of(&issued.token).unwrap_or_default());
    front
        .audit
        .note(granted(&client, who, "session", (&issued, &kid), more));
    Ok(TokenResponse {
        access_token: issued.token,
        issued_token_type: TYPE_ACCESS.to_owned(),
        token_type: "DPoP".to_owned(),
        expires_in: issued.expires_in,
        // RFC 6749 section 5.1: said where it is not what was asked for.
        scope: asked
            .filter(|asked| *asked != SESSION_SCOPE)
            .map(|_| SESSION_SCOPE.to_owned()),
    })
}

fn target_token(
    front: &Front,
    who: &Workload,
    audience: &str,
    form: &BTreeMap<String, String>,
    (presented, since): (&Presented, Instant),
) -> Result<TokenResponse, Refusal> {
    let offer = front.index().offer(&who.subject);
    let found = offer
        .bundle
        .targets
        .iter()
        .find_map(|bundled| match &bundled.target.spec.credential {
            // Tokens of other issuers are leased, not handed on from here.
            Credential::Token(token) if token.audience == audience && token.issuer == OWN => {
                Some((bundled.target.full_name(), token))
            }
            _ => None,
        });
    let (name, token) = found.ok_or_else(Refusal::invalid_target)?;
    let asked = form.get("scope").map(String::as_str);
    let policy = policies(&offer, &name);
    let more = More {
        credential_id: &presented.credential_id,
        asked: asked.unwrap_or_default(),
        policy: &policy,
        took: Some(since.elapsed()),
        ..More::of(who)
    };
    let (issued, scope) = mint(front, who, &name, token, asked, more)?;
    Ok(TokenResponse {
        access_token: issued.token,
        issued_token_type: TYPE_ACCESS.to_owned(),
        token_type: "Bearer".to_owned(),
        expires_in: issued.expires_in,
        scope: (asked != Some(scope.as_str()) && !scope.is_empty()).then_some(scope),
    })
}

/// The one grant check of `/token` and `/v1/leases`: (workload, target) to audience, scopes and life.
pub fn mint(
    front: &Front,
    who: &Workload,
    target: &str,
    token: &TokenCredential,
    asked: Option<&str>,
    more: More<'_>,
) -> Result<(Issued, String), Refusal> {
    let about = About {
        subject: Some(&who.subject),
        target: Some(target),
        issuer: Some(&token.issuer),
        secret: None,
    };
    if let Some(lockdown) = front.lockdowns.now().frozen(about, front.clock.now_ms()) {
        let why = format!("frozen by lockdown `{lockdown}`");
        refused_to(front, "token.refused", who, &why);
        return Err(Refusal::locked());
    }
    if token.issuer != OWN {
        refused_to(front, "token.refused", who, "a token of another issuer");
        return Err(Refusal::credential_refused());
    }
    let scope = match asked {
        None => token.scopes.join(" "),
        Some(asked) => {
            let kept: Vec<&str> = asked
                .split(' ')
                .filter(|scope| token.scopes.iter().any(|own| own == scope))
                .collect();
            if kept.is_empty() {
                return Err(Refusal::invalid_scope());
            }
            kept.join(" ")
        }
    };
    let issued = front.issuer.target(who, &token.audience, &scope, front.clock.now());
    let issued = issued.map_err(|_| Refusal::unavailable())?;
    // On record before it leaves.
    let given = format!("audience {}, scope {scope}, {} s", token.audience, issued.expires_in);
    let more = More {
        granted: &given,
        ..more
    };
    let (client, kid) = (who.client_id(), kid_of(&issued.token).unwrap_or_default());
    let recorded = front.audit.record(granted(&client, who, target, (&issued, &kid), more));
    recorded.map_err(|_| Refusal::unavailable())?;
    Ok((issued, scope))
}

/// The policies by which a workload has a Target, by name.
pub fn policies(offer: &Offer, target: &str) -> String {
    let all = offer.bundle.policies.iter().filter(|policy| {
        let home = policy.metadata.namespace.as_deref().unwrap_or_default();
        let mut named = policy.spec.target_refs.iter();
        named.any(|reference| format!("{home}/{}", reference.name) == target)
    });
    let names: Vec<String> = all.map(|policy| policy.full_name()).collect();
    names.join(" ")
}

fn granted<'a>(
    client: &'a str,
    who: &'a Workload,
    object: &'a str,
    (issued, kid): (&'a Issued, &'a str),
    more: More<'a>,
) -> Event<'a> {
    Event {
        subject: client,
        pod_uid: &who.subject.pod_uid,
        object,
        detail: &issued.id,
        more: More {
            jti: &issued.id,
            kid,
            ..more
        },
        ..Event::new(Kind::Issued, "token.granted")
    }
}

/// A form body without repeated parameters.
pub(super) async fn form(request: Request) -> Result<BTreeMap<String, String>, Refusal> {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .map(|value| value.as_bytes().to_ascii_lowercase());
    let is_form = kind.is_some_and(|kind| {
        let bare = kind.split(|byte| *byte == b';').next().unwrap_or_default();
        bare.trim_ascii() == b"application/x-www-form-urlencoded"
    });
    if !is_form || request.uri().query().is_some() {
        return Err(Refusal::invalid_request());
    }
    let bytes = body(request, MAX_BODY).await?;
    parse_form(&bytes).ok_or_else(Refusal::invalid_request)
}

fn parse_form(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut form = BTreeMap::new();
    for pair in bytes.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at_checked(at)?;
        let value = value.get(1..).unwrap_or_default();
        if form.insert(decode(name)?, decode(value)?).is_some() {
            return None;
        }
    }
    Some(form)
}

/// Percent-decoding as forms do it; anything malformed is refused, not kept.
fn decode(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                bytes.push(u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()?);
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded_and_repeated_or_malformed_ones_refused() {
        let form = parse_form(b"a=1&b=x%20y+z&c=&d").unwrap();
        assert_eq!(form["b"], "x y z");
        assert_eq!(form["d"], "");
        for bad in ["a=1&a=2", "a=1&%61=2", "a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert!(parse_form(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    fn presented_by(pairs: &[(&str, &str)]) -> Result<Slot, Refusal> {
        let form = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        presented(&form).map(|(slot, _)| slot)
    }

    #[test]
    fn a_token_is_handled_by_what_it_is_never_by_what_was_left_out() {
        let exchange = [
            ("grant_type", EXCHANGE),
            ("subject_token", "t"),
            ("subject_token_type", TYPE_JWT),
        ];
        assert_eq!(presented_by(&exchange), Ok(Slot::ServiceAccount));
        let assertion = [
            ("grant_type", "client_credentials"),
            ("client_assertion", "t"),
            ("client_assertion_type", ASSERTION_JWT),
        ];
        assert_eq!(presented_by(&assertion), Ok(Slot::ClientAssertion));
        for extra in ["actor_token", "actor_token_type"] {
            let with = [&exchange[..], &[(extra, "x")]].concat();
            assert_eq!(presented_by(&with), Err(Refusal::invalid_request()), "{extra}");
        }
        let other_type = [
            ("grant_type", EXCHANGE),
            ("subject_token", "t"),
            ("subject_token_type", TYPE_ACCESS),
        ];
        assert_eq!(presented_by(&other_type), Err(Refusal::invalid_request()));
        assert_eq!(presented_by(&exchange[..2]), Err(Refusal::invalid_request()));
        assert_eq!(
            presented_by(&[("grant_type", "password")]),
            Err(Refusal::unsupported_grant_type())
        );
    }

    #[test]
    fn more_than_one_target_or_a_fragment_is_refused() {
        let ask = |pairs: &[(&str, &str)]| {
            let form: BTreeMap<String, String> = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            asked_target(&form).map(|target| target.map(str::to_owned))
        };
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&[("audience", "a")]), Ok(Some("a".to_owned())));
        assert_eq!(ask(&[("resource", "https://a")]), Ok(Some("https://a".to_owned())));
        assert!(ask(&[("audience", "a"), ("resource", "https://a")]).is_err());
        assert!(ask(&[("resource", "https://a#x")]).is_err());
    }
}
