//! From a result's masks to work on its columns: the session's keys, its detectors, one worker per column.
//!
//! It refuses a column that cannot be masked within its type. Keys are random per session, so that pseudonyms of one
//! session say nothing in another.

use std::sync::Arc;

use sidegate_policies::engine::MaskSet;
use sidegate_policies::mask::{
    explained, CellMask, ColumnDetectors, Detected, Detectors, Format, Keys, MaskedCell, PlanForm, Unmaskable,
};
use sidegate_policies::sql::postgres::catalog::Catalog;
use sidegate_policies::sql::postgres::plan::{ColumnMasks, ColumnPlan, PlannedMask, ResultPlan};

use super::rows::{ColumnWork, Detect, WorkCell, Worked};

/// The type number of text: what a COPY column without a known type is looked at as.
const TEXT: u32 = 25;

fn format(binary: bool) -> Format {
    if binary {
        Format::Binary
    } else {
        Format::Text
    }
}

impl WorkCell for CellMask {
    fn work(&self, cell: &[u8], binary: bool, out: &mut Vec<u8>) -> Worked {
        match self.apply(cell, format(binary), out) {
            MaskedCell::Value => Worked::Value,
            MaskedCell::Null => Worked::Null,
        }
    }
}

impl WorkCell for ColumnDetectors {
    fn work(&self, cell: &[u8], binary: bool, out: &mut Vec<u8>) -> Worked {
        match self.apply(cell, format(binary), out) {
            Detected::Clean => Worked::Same,
            Detected::Masked => Worked::Value,
            Detected::Null => Worked::Null,
        }
    }
}

impl WorkCell for PlanForm {
    fn work(&self, cell: &[u8], _binary: bool, out: &mut Vec<u8>) -> Worked {
        explained(cell, *self, out);
        Worked::Value
    }
}

impl Detect for Detectors {
    fn replace(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        self.apply(text, out)
    }
}

/// Keys and detectors of one session.
pub struct MaskKit {
    keys: Keys,
    masks: Arc<MaskSet>,
    detectors: Arc<Detectors>,
}

impl MaskKit {
    /// A kit for the masks in force.
    pub fn new(keys: Keys, masks: Arc<MaskSet>) -> Self {
        MaskKit {
            detectors: Arc::new(Detectors::new(&masks.detectors, &keys)),
            keys,
            masks,
        }
    }

    /// Takes the masks of a newer bundle.
    pub fn update(&mut self, masks: &Arc<MaskSet>) {
        if !Arc::ptr_eq(&self.masks, masks) {
            self.detectors = Arc::new(Detectors::new(&masks.detectors, &self.keys));
            self.masks = masks.clone();
        }
    }

    /// Whether any column is masked for this subject.
    pub fn has_columns(&self) -> bool {
        !self.masks.columns.is_empty()
    }

    /// The detectors, where there are any.
    pub fn detectors(&self) -> Option<Arc<dyn Detect>> {
        (!self.detectors.is_empty()).then(|| self.detectors.clone() as Arc<dyn Detect>)
    }

    /// Work on the columns of a result; `types`: type without domains, and type modifier, of each.
    pub fn columns(&self, masks: &ColumnMasks, types: &[(u32, i32)]) -> Result<Vec<ColumnWork>, Unmaskable> {
        if let Some(form) = masks.explained {
            return Ok(vec![Some(Box::new(form))]);
        }
        let mut masked = masks.columns.iter().peekable();
        let mut columns = Vec::with_capacity(types.len());
        for (index, (type_oid, typmod)) in types.iter().enumerate() {
            columns.push(match masked.next_if(|mask| mask.index == index) {
                Some(mask) => self.masked(&mask.mask, mask.type_oid, mask.typmod)?,
                None if masks.detect => self.detecting(*type_oid, *typmod),
                None => None,
            });
        }
        Ok(columns)
    }

    /// Work on the columns of a COPY, by position.
    pub fn copy_columns(
        &self,
        plan: &ResultPlan,
        count: usize,
        catalog: &Catalog,
    ) -> Result<Vec<ColumnWork>, Unmaskable> {
        let mut columns = Vec::with_capacity(count);
        for index in 0..count {
            columns.push(match plan.columns().and_then(|planned| planned.get(index)) {
                Some(ColumnPlan::Mask(mask)) => {
                    let column = catalog.column(&mask.column);
                    let (oid, typmod) = column.map_or((TEXT, -1), |column| (column.type_oid, column.typmod));
                    self.masked(mask, catalog.base_type(oid), typmod)?
                }
                // A type that is not known here: text form is looked at as text, binary form is never cut open.
                Some(ColumnPlan::Pass) | None => self.detecting(u32::MAX, -1),
            });
        }
        Ok(columns)
    }

    fn masked(&self, mask: &PlannedMask, type_oid: u32, typmod: i32) -> Result<ColumnWork, Unmaskable> {
        Ok(Some(Box::new(CellMask::new(
            mask.how,
            type_oid,
            typmod,
            mask.not_null,
            &self.keys,
        )?)))
    }

    fn detecting(&self, type_oid: u32, typmod: i32) -> ColumnWork {
        let detectors = self.detectors.for_column(type_oid, typmod)?;
        Some(Box::new(detectors))
    }
}
