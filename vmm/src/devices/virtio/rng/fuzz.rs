//! The entropy queue under a hostile driver.

use super::queue::{BUDGET_BYTES, Budget, process};
use crate::fuzz::{Input, Permit, memory, scene};

pub(crate) fn queue(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let mut budget = Budget(input.one_of(&[BUDGET_BYTES, 0, 1, 100, 5000]));
    let before = budget.0;
    let Some(mut scene) = scene(&mut input, &memory, 0, |_| Vec::new()) else {
        return;
    };
    let permit = Permit::none(&memory).and(&scene.state);
    // Nonsense is an error, sense is served within the budget.
    let _ = process(&mut scene.ring, &memory, &mut budget);
    assert!(budget.0 <= before);
    permit.check(&memory);
}
