//! Reading kinds from YAML, with every problem located.
