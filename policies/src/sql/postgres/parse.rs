//! The only file that names the parser library: the tree's types are re-exported from here.

pub use pg_query::protobuf as pb;
