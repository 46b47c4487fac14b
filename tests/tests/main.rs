//! The suites against real servers, one program: each of its own would link every library again (some 100 MB each).
//! `tests/lint/house.py` fails when a file beside this one is not named here.

mod amazon;
mod audit;
mod audit_vectors;
mod cancel;
mod clients;
mod columns;
mod copied;
mod harness;
mod heap;
mod held;
mod hidden;
mod images;
mod kill;
mod limits;
mod lineage;
mod login;
mod masked;
mod memory;
mod moved;
mod oauth;
mod real_vault;
mod records;
mod redirect;
mod schema;
mod scraped;
mod session_name;
mod silence;
mod startup;
mod state;
mod tamper;
mod together;
mod unrecorded;
mod vault;
mod vectors;
mod waist;
