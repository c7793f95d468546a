//! Scenes with captions, made when they are asked for.

use std::sync::Arc;

use rayon::prelude::*;

use super::colours::{BACKGROUNDS, visible};
use super::content::{Content, Kind, Naming, Place, Placed, Relation, caption};
use super::drawings::Drawings;
use super::layout;
use super::options::SceneOptions;
use super::paint::{Pyramid, over};
use super::random::Random;
use super::splits::Splits;

/// How often a scene of a kind is drawn anew when it may not be; then it becomes a single object.
const DRAWS: usize = 1000;

/// A picture and its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// RGB, side x side.
    pub pixels: Vec<u8>,
    /// What it shows in words.
    pub caption: String,
    /// What it shows.
    pub content: Content,
}

/// Makes scenes of drawings. A pack of captioned pictures gives those as they are, in random order.
#[derive(Clone, Debug)]
pub struct Scenes {
    drawings: Arc<Drawings>,
    options: SceneOptions,
    splits: Splits,
    visible: Vec<[bool; BACKGROUNDS.len()]>,
    pyramids: Vec<Pyramid>,
    by_style: Vec<Vec<usize>>,
}

impl Scenes {
    /// Of these drawings.
    ///
    /// # Errors
    ///
    /// An option is out of its range, or there are too few drawings for the kinds that are asked for.
    pub fn new(drawings: Arc<Drawings>, options: SceneOptions) -> Result<Self, String> {
        options.check()?;
        let mut by_style = vec![vec![]; drawings.styles.len()];
        for (index, drawing) in drawings.drawings.iter().enumerate() {
            by_style[drawing.style].push(index);
        }
        let pyramids = (0..drawings.len()).into_par_iter().map(|i| Pyramid::new(drawings.image(i), drawings.side)).collect();
        let (splits, visible) = (Splits::new(&drawings), visible(&drawings));
        let made = Self { drawings, options, splits, visible, pyramids, by_style };
        if made.drawings.is_empty() {
            return Err("there is no drawing to make scenes of".into());
        }
        if !made.drawings.drawings.is_empty() {
            if made.options.mix.relation > 0.0 && made.drawings.concepts.len() < 2 {
                return Err("scenes of two objects need two concepts; set mix.relation to 0".into());
            }
            if made.any_single(0).is_none() {
                return Err("no drawing stands out against any background".into());
            }
        }
        Ok(made)
    }

    /// Scene `index` of the sequence `seed`. The same arguments give the same scene, on every machine that has the same drawings.
    pub fn scene(&self, seed: u64, index: u64) -> Scene {
        let mut random = Random::new(seed, index);
        let content = self.content(&mut random);
        let Self { options: SceneOptions { named, .. }, .. } = self;
        let naming = Naming {
            background: random.chance(named.background),
            style: random.chance(named.style),
            alias: [random.chance(named.alias), random.chance(named.alias)],
        };
        Scene { pixels: self.render(&content), caption: caption(&content, &self.drawings, naming), content }
    }

    /// The picture of a scene: RGB, side x side.
    ///
    /// # Panics
    ///
    /// The content is that of other drawings.
    pub fn render(&self, content: &Content) -> Vec<u8> {
        let side = self.options.side;
        let mut pixels = content.colour.repeat(side * side);
        for &Placed { drawing, centre, size } in &content.objects {
            over(&mut pixels, side, &self.drawings, &self.pyramids[drawing], drawing, centre, size);
        }
        pixels
    }

    /// The drawings.
    pub fn drawings(&self) -> &Arc<Drawings> {
        &self.drawings
    }

    /// The options.
    pub fn options(&self) -> &SceneOptions {
        &self.options
    }

    /// What is held out of training.
    pub fn splits(&self) -> &Splits {
        &self.splits
    }

    /// What the next scene shows.
    fn content(&self, random: &mut Random) -> Content {
        if !self.drawings.captions.is_empty() {
            let middle = self.options.side as f32 / 2.0;
            let picture = Placed { drawing: random.below(self.drawings.len()), centre: (middle, middle), size: 2.0 * middle };
            return Content { background: 0, colour: [255; 3], style: 0, objects: vec![picture], kind: Kind::Picture };
        }
        let kind = self.kind(random);
        let allowed = |content: &Content| !self.options.hold_out || self.splits.trains(content);
        for _ in 0..DRAWS {
            if let Some(content) = self.draw(kind, random).filter(allowed) {
                return content;
            }
        }
        self.any_single(random.below(self.drawings.len())).expect("there was one when this was made")
    }

    pub(super) fn kind(&self, random: &mut Random) -> Kind {
        let mix = &self.options.mix;
        let mut left = random.unit() * (mix.single + mix.place + mix.relation + mix.count);
        let mut falls_to = |share: f64| {
            left -= share;
            left < 0.0
        };
        if falls_to(mix.single) {
            Kind::Single
        } else if falls_to(mix.place) {
            Kind::Place(Place::ALL[random.below(Place::ALL.len())])
        } else if falls_to(mix.relation) {
            Kind::Relation(Relation::ALL[random.below(Relation::ALL.len())])
        } else if mix.count > 0.0 {
            self.count(random)
        } else {
            // The shares' sum was rounded.
            Kind::Single
        }
    }

    pub(super) fn count(&self, random: &mut Random) -> Kind {
        let [least, greatest] = self.options.counts;
        Kind::Count(least + random.below(greatest + 1 - least))
    }

    /// A scene of this kind, if what is drawn makes one. Both of two objects have one style.
    pub(super) fn draw(&self, kind: Kind, random: &mut Random) -> Option<Content> {
        let first = random.below(self.drawings.drawings.len());
        let style = self.drawings.drawings[first].style;
        let chosen = match kind {
            Kind::Relation(_) => {
                let same_style = &self.by_style[style];
                let second = same_style[random.below(same_style.len())];
                let concept = |i: usize| self.drawings.drawings[i].concept;
                (concept(first) != concept(second)).then_some(vec![first, second])?
            }
            Kind::Count(count) => {
                let counted = !self.drawings.concept(first).plural.is_empty();
                counted.then(|| vec![first; count])?
            }
            _ => vec![first],
        };
        let background = random.below(BACKGROUNDS.len());
        if chosen.iter().any(|&drawing| !self.visible[drawing][background]) {
            return None;
        }
        let colour = self.shade(background, random);
        let objects = layout::place(kind, &chosen, &self.options, random);
        Some(Content { background, colour, style, objects, kind })
    }

    /// Another scene of the same caption: the objects placed anew, on another shade of the background.
    pub fn again(&self, content: &Content, random: &mut Random) -> Content {
        let drawings: Vec<usize> = content.objects.iter().map(|object| object.drawing).collect();
        let colour = self.shade(content.background, random);
        Content { colour, objects: layout::place(content.kind, &drawings, &self.options, random), ..content.clone() }
    }

    /// A named colour, a little changed.
    fn shade(&self, background: usize, random: &mut Random) -> [u8; 3] {
        let jitter = i64::from(self.options.colour_jitter);
        BACKGROUNDS[background].1.map(|level| {
            let change = random.below(2 * jitter as usize + 1) as i64 - jitter;
            (i64::from(level) + change).clamp(0, 255) as u8
        })
    }

    /// The first single object from this drawing on that may be shown, on the first background that it may be shown on.
    fn any_single(&self, start: usize) -> Option<Content> {
        let count = self.drawings.drawings.len();
        let all = (start..start + count).flat_map(|i| (0..BACKGROUNDS.len()).map(move |background| (i % count, background)));
        let middle = self.options.side as f32 / 2.0;
        let make = |(drawing, background): (usize, usize)| Content {
            background,
            colour: BACKGROUNDS[background].1,
            style: self.drawings.drawings[drawing].style,
            objects: vec![Placed { drawing, centre: (middle, middle), size: 1.5 * middle }],
            kind: Kind::Single,
        };
        let allowed = |content: &Content| !self.options.hold_out || self.splits.trains(content);
        all.filter(|&(drawing, background)| self.visible[drawing][background]).map(make).find(allowed)
    }
}
