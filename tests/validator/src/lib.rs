//! A token validator that PostgreSQL 18 loads (`oauth_validator_libraries`), for tests only: it accepts an access token
//! signed (ES256) by a key of the given set, from the given issuer, for the given audience, within its time.
//!
//! What it trusts stands in `sidegate_validator.json` in the server's data folder, the working directory of every
//! backend: `{"issuer": …, "audience": …, "jwks": {"keys": […]}}`. It is read anew for every login. The structures below
//! are those of PostgreSQL 18's `fmgr.h` and `libpq/oauth.h`; the server compares the first with its own and refuses to
//! load what does not fit. The only crate of the workspace with `unsafe` code: the server's interface is C.

#![allow(unsafe_code)]

mod token;

use std::ffi::{c_char, c_int, c_void, CStr, CString};

/// What the server compares before it uses a module (`Pg_abi_values`).
#[repr(C)]
pub struct Abi {
    version: c_int,
    func_max_args: c_int,
    index_max_keys: c_int,
    name_data_len: c_int,
    float8_by_value: c_int,
    extra: [u8; 32],
}

/// `Pg_magic_struct`.
#[repr(C)]
pub struct Magic {
    length: c_int,
    abi: Abi,
    name: *const c_char,
    version: *const c_char,
}

// SAFETY: the pointers are null and nobody writes to it.
unsafe impl Sync for Magic {}

const fn extra() -> [u8; 32] {
    let (text, mut bytes) = (b"PostgreSQL", [0; 32]);
    let mut at = 0;
    while at < text.len() {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}

static MAGIC: Magic = Magic {
    length: std::mem::size_of::<Magic>() as c_int,
    abi: Abi {
        version: 1800,
        func_max_args: 100,
        index_max_keys: 32,
        name_data_len: 64,
        float8_by_value: 1,
        extra: extra(),
    },
    name: std::ptr::null(),
    version: std::ptr::null(),
};

/// `ValidatorModuleResult`.
#[repr(C)]
pub struct Verdict {
    authorized: bool,
    authn_id: *mut c_char,
}

type Validate = unsafe extern "C" fn(*const c_void, *const c_char, *const c_char, *mut Verdict) -> bool;

/// `OAuthValidatorCallbacks`.
#[repr(C)]
pub struct Callbacks {
    magic: u32,
    startup: Option<unsafe extern "C" fn(*mut c_void)>,
    shutdown: Option<unsafe extern "C" fn(*mut c_void)>,
    validate: Option<Validate>,
}

static CALLBACKS: Callbacks = Callbacks {
    magic: 0x2025_0220,
    startup: None,
    shutdown: None,
    validate: Some(validate),
};

extern "C" {
    /// The server's: a copy in its own memory, which it frees.
    fn pstrdup(text: *const c_char) -> *mut c_char;
}

/// What the server asks every module.
#[no_mangle]
pub extern "C" fn Pg_magic_func() -> *const Magic {
    &MAGIC
}

/// What the server asks a validator.
#[no_mangle]
pub extern "C" fn _PG_oauth_validator_module_init() -> *const Callbacks {
    &CALLBACKS
}

/// Judges one token. False would be an internal error; a bad token is a verdict. Which role may be taken is decided by
/// the server's user map.
///
/// # Safety
/// Called by the server with a token and a role that end in NUL, and a verdict of its own.
unsafe extern "C" fn validate(
    _: *const c_void,
    token: *const c_char,
    _role: *const c_char,
    verdict: *mut Verdict,
) -> bool {
    // SAFETY: as above.
    let (token, verdict) = unsafe { (CStr::from_ptr(token), &mut *verdict) };
    // A panic must not cross into C.
    let judged = std::panic::catch_unwind(|| token::judge(token.to_str().unwrap_or_default()));
    verdict.authorized = false;
    match judged {
        Ok(Ok(subject)) => {
            let Ok(subject) = CString::new(subject) else {
                return true;
            };
            // SAFETY: the text ends in NUL and is copied.
            verdict.authn_id = unsafe { pstrdup(subject.as_ptr()) };
            verdict.authorized = true;
            true
        }
        Ok(Err(why)) => {
            // The server's log; the tests look for it.
            eprintln!("sidegate validator: {why}");
            true
        }
        Err(_) => false,
    }
}
