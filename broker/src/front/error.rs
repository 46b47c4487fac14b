//! What goes outward when a call is refused: RFC 6749 bodies, alike whatever the precise reason was.
//!
//! Refuses to carry details: a description is one of a few fixed sentences. The invariant: the outward form of
//! a refusal depends on its class alone.

use axum::response::{IntoResponse, Response};
use http::header::{HeaderValue, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::StatusCode;
use serde_json::json;

use crate::spans::Refused;

/// A refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Machine-readable error.
    pub error: &'static str,
    /// A fixed sentence.
    pub description: &'static str,
}

impl Refusal {
    const fn new(status: StatusCode, error: &'static str, description: &'static str) -> Self {
        Refusal {
            status,
            error,
            description,
        }
    }

    /// The request is malformed.
    pub const fn invalid_request() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", "The request is malformed.")
    }

    /// Another grant type.
    pub const fn unsupported_grant_type() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "This grant type is not served.",
        )
    }

    /// Not a target of the caller.
    pub const fn invalid_target() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_target",
            "The caller has no such target.",
        )
    }

    /// Nothing is left of the scopes asked for.
    pub const fn invalid_scope() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_scope",
            "None of these scopes is granted.",
        )
    }

    /// The caller is not who it should be. `/token` and every other call use the same words.
    pub const fn invalid_client() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "The caller is not attested.",
        )
    }

    /// The proof is bad.
    pub const fn invalid_proof() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_dpop_proof",
            "The proof of possession is not accepted.",
        )
    }

    /// Once more, with the nonce of this answer: at the token endpoint.
    pub const fn use_nonce() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "use_dpop_nonce",
            "Send the proof again with this nonce.",
        )
    }

    /// Once more, with the nonce of this answer: everywhere else.
    pub const fn use_nonce_here() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "use_dpop_nonce",
            "Send the proof again with this nonce.",
        )
    }

    /// Try later.
    pub const fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
            "Try again later.",
        )
    }

    /// A newer container is not visible yet: try for up to 30 seconds.
    pub const fn restart_not_seen() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "restart_not_seen",
            "Try again in a moment.",
        )
    }

    /// A lockdown freezes it.
    pub const fn locked() -> Self {
        Self::new(StatusCode::FORBIDDEN, "locked", "Access is frozen.")
    }

    /// The credential's source says no, for good.
    pub const fn credential_refused() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "credential_refused",
            "There is no credential for this target.",
        )
    }

    /// No rule asks for this, or the claim does not fit.
    pub const fn not_allowed() -> Self {
        Self::new(StatusCode::FORBIDDEN, "not_allowed", "This cannot be done.")
    }

    /// Too much at once.
    pub const fn limit() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "limit", "Too many requests.")
    }

    /// Over the caller's budget.
    pub const fn too_many() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "temporarily_unavailable",
            "Try again later.",
        )
    }

    /// Too long for people to read.
    pub const fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "Too long to be shown to people.",
        )
    }

    /// Nothing there.
    pub const fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"error": self.error, "error_description": self.description}).to_string();
        let mut response = (self.status, body).into_response();
        response.extensions_mut().insert(Refused(self.error));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = format!("DPoP error=\"{}\", algs=\"ES256\"", self.error);
            if let Ok(value) = HeaderValue::from_str(&challenge) {
                headers.insert(WWW_AUTHENTICATE, value);
            }
        }
        if matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
