//! The balloon's queues under a hostile driver.

use super::queue::{Purpose, process};
use crate::fuzz::{Input, Permit, memory, scene};

pub(crate) fn queue(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let purpose = input.one_of(&[Purpose::Inflate, Purpose::Deflate, Purpose::Report]);
    let numbers = |input: &mut Input<'_>| {
        let count = input.below(8);
        (0..count)
            .flat_map(|_| {
                let any = input.byte();
                let number = if any < 0xf0 {
                    u32::from(any % 8)
                } else {
                    input.word()
                };
                number.to_le_bytes()
            })
            .collect()
    };
    let Some(mut scene) = scene(&mut input, &memory, 0, numbers) else {
        return;
    };
    let permit = Permit::none(&memory).and(&scene.state);
    for _ in 0..4 {
        if !process(&mut scene.ring, &memory, purpose).is_ok_and(|outcome| outcome.more) {
            break;
        }
    }
    let permit = match purpose {
        // The guest's pages are its own, wherever they are.
        Purpose::Inflate => permit.and_empty_pages(&memory),
        Purpose::Deflate | Purpose::Report => permit,
    };
    permit.check(&memory);
}
