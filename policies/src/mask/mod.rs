//! Masks: what a cell becomes, by column mask or by detector.
