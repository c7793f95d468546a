//! The C ABI of hart. It has no functions yet: the crate builds the empty shared and static library that they will stand in.
