//! What a provider's answer means: a token and its end, or a class of failure.
//!
//! Matches by JSON pointer and equality, never by prose. Refuses, as broken, whatever is not the answer that was asked
//! for: no JSON, no token, another type or audience, a life that cannot be read or is over. Invariant: nothing of an
//! answer goes into a failure but its status.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use secrecy::SecretString;
use serde_json::Value;
use sidegate_policies::presets::{Audience, Class, Encoding, Reply, Step};
use zeroize::Zeroize as _;

use super::{xml, Failure};
use crate::clock::parse_rfc3339;

/// Life of a token whose provider does not say, seconds.
const UNSAID: i64 = 300;
/// The longest token.
const MAX_TOKEN: usize = 16 * 1024;

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    /// In seconds, where it said so.
    pub(super) retry_after: Option<u64>,
    pub(super) body: Vec<u8>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.body.zeroize();
    }
}

/// A token as a step gave it.
pub(super) struct Given {
    pub(super) token: SecretString,
    /// What belongs to it, in the preset's order.
    pub(super) more: Vec<SecretString>,
    /// Seconds from when it was asked for.
    pub(super) life: i64,
}

/// What an answer means. `asked_at` in seconds.
pub(super) fn judge(step: &Step, answer: &Answer, audience: &str, asked_at: i64) -> Result<Given, Failure> {
    let json: Option<Value> = serde_json::from_slice(&answer.body).ok();
    // AWS answers in JSON when it is asked to, what stands in for it does not.
    let json = json.or_else(|| (step.encoding == Encoding::AwsQuery).then(|| xml::read(&answer.body))?);
    let status = answer.status;
    match status {
        200 | 201 => {
            let json = json.ok_or_else(|| broken("a good status, but no JSON"))?;
            given(&step.reply, &json, audience, asked_at)
        }
        400.. => Err(failure(step, answer, json.as_ref())),
        300..=399 => Err(broken(&format!("a redirect (status {status})"))),
        _ => Err(broken(&format!("status {status}"))),
    }
}

fn broken(why: &str) -> Failure {
    Failure::new(Class::Broken, why)
}

fn failure(step: &Step, answer: &Answer, json: Option<&Value>) -> Failure {
    let status = answer.status;
    let rule = step.errors.iter().find(|rule| {
        let found = json.and_then(|json| json.pointer(&rule.at));
        found == Some(&rule.is)
    });
    let (class, why) = match rule {
        // What the preset says, not what the provider said.
        Some(rule) => (rule.class, format!("status {status}, {} is {}", rule.at, rule.is)),
        None => (class_of(status), format!("status {status}")),
    };
    Failure {
        class,
        why,
        retry_after: answer.retry_after,
    }
}

/// What a status means where nothing else is known of an answer.
pub(super) fn class_of(status: u16) -> Class {
    match status {
        408 | 425 | 429 | 500.. => Class::Retry,
        _ => Class::Final,
    }
}

fn given(reply: &Reply, json: &Value, audience: &str, asked_at: i64) -> Result<Given, Failure> {
    for expect in &reply.expect {
        let said = json.pointer(&expect.at).and_then(Value::as_str);
        if !said.is_some_and(|said| expect.any.iter().any(|good| good == said)) {
            return Err(broken(&format!("{} is not what was asked for", expect.at)));
        }
    }
    let token = json.pointer(&reply.token).and_then(Value::as_str).unwrap_or_default();
    if !formed(token) {
        return Err(broken("no token, or one that cannot be shown"));
    }
    let mut more = Vec::with_capacity(reply.more.len());
    for pointer in &reply.more {
        let text = json.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        if !formed(text) {
            return Err(broken("a part of the token is missing, or cannot be shown"));
        }
        more.push(SecretString::from(text.to_owned()));
    }
    let claims = claims(token);
    if reply.audience == Audience::Checked {
        if let Some(named) = claims.as_ref().and_then(|claims| claims.get("aud")) {
            let is = |one: &Value| one.as_str() == Some(audience);
            if !is(named) && !named.as_array().is_some_and(|many| many.iter().any(is)) {
                return Err(broken("the token is for another audience"));
            }
        }
    }
    let life = life(reply, json, claims.as_ref(), asked_at)?;
    if life <= 0 {
        return Err(broken("the token is over already"));
    }
    Ok(Given {
        token: SecretString::from(token.to_owned()),
        more,
        life,
    })
}

/// RFC 6750 section 2.1: what cannot stand in a header is no token.
fn formed(token: &str) -> bool {
    let formed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=:|,$%!*".contains(&byte);
    !token.is_empty() && token.len() <= MAX_TOKEN && token.bytes().all(formed)
}

/// The shortest life that anybody names.
fn life(reply: &Reply, json: &Value, claims: Option<&Value>, asked_at: i64) -> Result<i64, Failure> {
    let said = |pointer: &Option<String>| pointer.as_ref().and_then(|pointer| json.pointer(pointer));
    let mut lives = Vec::new();
    if let Some(said) = said(&reply.expires_in) {
        lives.push(seconds(said).ok_or_else(|| broken("a life that is no number"))?);
    }
    if let Some(said) = said(&reply.expires_at) {
        let end = seconds(said).or_else(|| Some(parse_rfc3339(said.as_str()?)?.div_euclid(1000)));
        let end = end.ok_or_else(|| broken("an end that is no time"))?;
        lives.push(end.saturating_sub(asked_at));
    }
    let named = !lives.is_empty();
    if let Some(exp) = claims.and_then(|claims| claims.get("exp")) {
        let exp = seconds(exp).ok_or_else(|| broken("a JWT whose exp is no number"))?;
        lives.push(exp.saturating_sub(asked_at));
    }
    if !named {
        lives.push(UNSAID);
    }
    Ok(lives.into_iter().min().unwrap_or(0))
}

/// A number of seconds, also as some write it: as a text, or with a fraction.
fn seconds(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => {
            // Beyond what a float holds exactly there is no time anybody means.
            let whole = |float: f64| format!("{:.0}", float.clamp(-9e15, 9e15).floor()).parse().ok();
            number.as_i64().or_else(|| number.as_f64().and_then(whole))
        }
        _ => None,
    }
}

/// The claims of a JWT, unverified: they can only shorten a life or refuse. Nothing, if it is none.
fn claims(token: &str) -> Option<Value> {
    let mut segments = token.split('.');
    let (_, claims, _) = (segments.next()?, segments.next()?, segments.next()?);
    if segments.next().is_some() {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims.is_object().then_some(claims)
}
