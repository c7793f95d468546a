//! Images.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use hart_core::Image;

use crate::guard::guard;
use crate::handle::{Handle, free, get};
use crate::out::{self, Out, Struct};
use crate::status::{Failure, HART_ERR_IO, hart_status};
use crate::text;

/// Maximum number of images in a grid.
const MAX_GRID: usize = hart_core::MAX_IMAGES;

/// An image with 8-bit RGB pixels. It never changes.
pub struct hart_image(());

impl Handle for hart_image {
    type Value = CImage;
    const NAME: &'static str = "hart_image";
}

/// An image with its strings as C strings, and its PNG file once that is encoded.
pub(crate) struct CImage {
    pub(crate) image: Image,
    png: OnceLock<Vec<u8>>,
    prompt: Option<CString>,
    settings: Option<CString>,
}

impl CImage {
    pub(crate) fn new(image: Image) -> Self {
        let text = |text: &str| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let prompt = image.provenance.as_ref().map(|p| text(&p.prompt));
        let settings = image.provenance.as_ref().map(|p| text(&p.settings));
        Self { image, png: OnceLock::new(), prompt, settings }
    }
}

/// Pixels of an image, and how it was generated. Set `struct_size` to `sizeof(hart_image_view)` before the call. The
/// pointers are valid until the image is freed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_image_view {
    /// `sizeof(hart_image_view)`.
    pub struct_size: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes per pixel: 3, in the order red, green, blue.
    pub channels: u32,
    /// Bytes from the start of one row to the start of the next.
    pub stride: usize,
    /// Size of all pixels in bytes.
    pub size: usize,
    /// Pixels, row by row from the top left.
    pub pixels: *const u8,
    /// Seed of the image, or 0 if it was not generated.
    pub seed: u64,
    /// Prompt of the image, or NULL if it was not generated.
    pub prompt: *const c_char,
    /// The other settings in one line, or NULL if it was not generated.
    pub settings: *const c_char,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_image_view {}

/// Creates an image from pixels, which are copied: `height` rows from the top, each of `width` pixels with 3 bytes for
/// red, green and blue. `stride` is the distance between the starts of two rows in bytes; 0 stands for 3 * width. Free
/// the image with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if a side is 0 or the stride is too small.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_new(
    width: u32,
    height: u32,
    stride: usize,
    pixels: *const u8,
    image: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let row = 3 * width as usize;
        let stride = if stride == 0 { row } else { stride };
        let size = (height as usize).checked_sub(1).and_then(|rows| stride.checked_mul(rows)?.checked_add(row));
        let size = size.filter(|_| width > 0 && stride >= row).ok_or_else(|| {
            let problem = format!("{width} x {height} pixels with a stride of {stride} bytes");
            Failure::argument(format!("{problem}: expected at least one pixel, and a stride of 0 or at least 3 * width"))
        })?;
        let bytes = text::bytes(pixels, size, "pixels")?;
        let rows = bytes.chunks(stride).flat_map(|line| &line[..row]).copied().collect();
        image.write(CImage::new(Image::from_rgb(width as usize, height as usize, rows)?));
        Ok(())
    })
}

/// Reads a PNG file of any colour type, turns it upright according to its EXIF orientation and composites transparent
/// pixels over white. In a mask, transparent pixels count as black. Also reads prompt, seed and settings from a file
/// that hart wrote. Free the image with `hart_image_free`. Returns `HART_ERR_IO` if the file can't be read and
/// `HART_ERR_IMAGE` if it is malformed or truncated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open(path: *const c_char, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        image.write(CImage::new(Image::open_png(Path::new(text::get(path, "path")?))?));
        Ok(())
    })
}

/// Reads a PNG file of `size` bytes in memory, like `hart_image_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_open_memory(data: *const u8, size: usize, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        image.write(CImage::new(Image::from_png("the image in memory", text::bytes(data, size, "data")?)?));
        Ok(())
    })
}

/// Frees the image. Does nothing if `image` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_free(image: *mut hart_image) {
    free(image);
}

/// Writes the pixels of the image and how it was generated to `view`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_describe(image: *const hart_image, view: *mut hart_image_view) -> hart_status {
    guard(|| {
        let CImage { image, prompt, settings, .. } = get(image, "image")?;
        let pixels = image.pixels();
        let text = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let value = hart_image_view {
            struct_size: 0,
            width: image.width() as u32,
            height: image.height() as u32,
            channels: 3,
            stride: 3 * image.width(),
            size: pixels.len(),
            pixels: pixels.as_ptr(),
            seed: image.provenance.as_ref().map_or(0, |p| p.seed),
            prompt: text(prompt),
            settings: text(settings),
        };
        out::fill(view, value, "view")
    })
}

/// Writes a PNG file with prompt, seed and settings in its text chunks. The file is written completely or not at all.
/// Returns `HART_ERR_IO` if it can't be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_save(image: *const hart_image, path: *const c_char) -> hart_status {
    guard(|| Ok(get(image, "image")?.image.save_png(Path::new(text::get(path, "path")?))?))
}

/// Returns the bytes of the PNG file that `hart_image_save` writes. They are valid until the image is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_png(image: *const hart_image, data: *mut *const u8, size: *mut usize) -> hart_status {
    guard(|| {
        out::set(data, ptr::null(), "data")?;
        out::set(size, 0, "size")?;
        let CImage { image, png, .. } = get(image, "image")?;
        let file = match png.get() {
            Some(file) => file,
            None => {
                let file = image.to_png().map_err(|e| Failure::new(HART_ERR_IO, format!("PNG: {e}")))?;
                png.get_or_init(|| file)
            }
        };
        out::set(data, file.as_ptr(), "data")?;
        out::set(size, file.len(), "size")
    })
}

/// Returns an image of the same size that is white where `image` is transparent and black where it is opaque. Pass it to
/// `hart_request_set_inpaint` if the transparent part is to be regenerated, as in OpenAI's image API. Only images of PNG
/// files have transparent pixels. Free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_transparency(image: *const hart_image, mask: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let mask = Out::<hart_image>::new(mask, "mask")?;
        mask.write(CImage::new(get(image, "image")?.image.transparency()));
        Ok(())
    })
}

/// Arranges `count` images of equal size in a grid with `columns` columns. Free the grid with `hart_image_free`.
/// Returns `HART_ERR_REQUEST` if there are no images, their sizes differ, or `columns` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_image_grid(
    images: *const *const hart_image,
    count: usize,
    columns: usize,
    grid: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let grid = Out::<hart_image>::new(grid, "grid")?;
        if images.is_null() {
            return Err(Failure::null("images"));
        }
        if count > MAX_GRID {
            return Err(Failure::argument(format!("`count` is {count}, expected at most {MAX_GRID}")));
        }
        let images: Result<Vec<&Image>, Failure> = (0..count).map(|i| Ok(&get(images.add(i).read(), "images[i]")?.image)).collect();
        grid.write(CImage::new(Image::grid(&images?, columns)?));
        Ok(())
    })
}
