//! Masking at Result: rows, COPY data, errors and notices on their way to the agent.
//!
//! It owns no policy: which column is masked and how comes from the plan. It refuses rows that do not fit their plan.
//! Invariant: clean cells stay byte-identical, NULL stays NULL, and no result set is ever held.

pub mod cells;
pub mod copy;
pub mod echo;
pub mod rows;
pub mod scrub;
