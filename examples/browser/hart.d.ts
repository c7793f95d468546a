/** Text-to-image generation with HART in browsers and in Node. */

/**
 * Where the files of a model are.
 *
 * - A base URL of a folder, in a browser relative to the page. In Node, a path or a `file:` URL is a folder of the file system.
 * - The File objects of `<input type="file" webkitdirectory>`, or others whose names are paths.
 * - The handle of a folder, from `showDirectoryPicker()` or the origin private file system.
 * - An object of names relative to the folder, such as `llm/config.json`, and their URLs or contents.
 *
 * A folder at a URL may have a `files.json`, an array of the names of the model's files, or an object of their names and sizes in bytes.
 * Without it the server is asked for each file that a model can have.
 */
export type ModelFiles = string | URL | Iterable<File> | FileSystemDirectoryHandle | Record<string, string | URL | Blob | ArrayBuffer | Uint8Array>;

export interface OpenOptions {
  /** Receives the progress of opening. */
  onProgress?: (progress: OpenProgress) => void;
  /** Precision of weights and activations. Default: that of the files, f32 if they have none. */
  precision?: "auto" | "f32" | "bf16" | "int8";
  /**
   * Number of threads. Default: one for each core if the page is cross-origin isolated, and in Node; otherwise, or if the module with
   * threads is not built, 1. Images do not depend on it.
   */
  threads?: number;
  /** Limit in bytes for the estimated memory. Default: what a module can address, somewhat below 4 GiB. */
  maxMemory?: number;
  /**
   * Keeps files of a server in the browser's cache; a string names it. Default: true. A file that has changed on the server is
   * fetched again.
   */
  cache?: boolean | string;
  /** Ends opening; the promise rejects with the code `cancelled`. */
  signal?: AbortSignal;
}

export interface OpenProgress {
  /** `engine`: the module is fetched and compiled. `files`: the model's files are fetched or read. `load`: the weights are loaded. */
  phase: "engine" | "files" | "load";
  /** Bytes that have been fetched or read. */
  loaded: number;
  /** Bytes of all files; null if the server does not say. */
  total: number | null;
  /** The current file, such as `llm/model.safetensors`. */
  file: string | null;
  /** Whether the current file comes from the browser's cache. */
  cached: boolean;
}

/** An open model. It is in a worker; calls do not block the page. */
export class Hart {
  private constructor();

  /** Opens a model. Rejects with a HartError and leaves no worker if it cannot be opened. */
  static open(files: ModelFiles, options?: OpenOptions): Promise<Hart>;

  /** Properties of the model. */
  readonly info: ModelInfo;

  /**
   * Generates an image. A text is short for `{ prompt }`. Calls run one after another. `onEvent` is called in order, before the promise
   * settles.
   *
   * After the code `crashed`, the next call opens the model again in a fresh worker.
   */
  generate(request: string | GenerateOptions, onEvent?: (event: HartEvent) => void): Promise<HartImage>;

  /** Ends the worker and frees the model. Calls that have not finished reject with the code `freed`. */
  free(): void;

  /** Deletes files that `open` has kept in the browser's cache: those below a base URL, or all. */
  static clearCache(base?: string | URL, cache?: string): Promise<void>;
}

export interface ModelInfo {
  /** Width of images in pixels. */
  readonly width: number;
  /** Height of images in pixels. */
  readonly height: number;
  /** Number of scales of an image. */
  readonly scales: number;
  readonly precision: "f32" | "bf16" | "int8";
  /** Fingerprint of the model: 64 hexadecimal digits, also in the files of its images. */
  readonly fingerprint: string;
  readonly threads: number;
  /**
   * The way in which a run is cancelled. `flag`: it stops at its next step. `restart`, without shared memory: the worker is ended, and a new one opens
   * the model again in the background.
   */
  readonly cancel: "flag" | "restart";
  /** Settings of a request that names none. */
  readonly defaults: {
    readonly guidance: number;
    readonly smoothing: boolean;
    /** Null for the published numbers of each scale. */
    readonly topK: number | null;
    readonly topP: number;
    readonly steps: number;
  };
  /** Largest absolute value of `guidance`. */
  readonly maxGuidance: number;
  /** Largest size of a prompt in UTF-8. */
  readonly maxPromptBytes: number;
}

/** A request. Settings that are missing or null are the model's defaults. */
export interface GenerateOptions {
  /** Description of the image. */
  prompt: string;
  /** Seed from 0 to 2^64 - 1. The same seed gives the same image. Default: a random one. A number must be at most 2^53 - 1. */
  seed?: bigint | number | string | null;
  /** Strength of classifier-free guidance; 0 disables it. */
  guidance?: number | null;
  /** Whether a token is a weighted mix of codebook rows or a single row. */
  smoothing?: boolean | null;
  /** Number of most likely codes from which a token is sampled. */
  topK?: number | null;
  /** Total probability of the most likely codes from which a token is sampled, 0 to 1; 0 keeps all. */
  topP?: number | null;
  /** Number of steps of the residual diffusion. */
  steps?: number | null;
  /** Text before the prompt. Default: the checkpoint's; null: none. */
  systemPrompt?: string | null;
  /**
   * Marks in the image file: names of `prompt`, `parameters`, `settings` and `source` with commas, `all` (the default) or `none`.
   * `parameters,settings,source` keeps the prompt out of the file.
   */
  marks?: string | null;
  /**
   * Largest side of previews in pixels; 0 for none. Default: 256 with a listener. A run's previews become larger or smaller so that they
   * take about a twentieth of its time. The first has at most 64 pixels.
   */
  preview?: number | null;
  /** Cancels the run; the promise rejects at once with the code `cancelled`. */
  signal?: AbortSignal | null;
}

/** Stages of a run, in order. */
export type Stage = "text" | "transformer" | "sampling" | "residual" | "decode";

interface EventBase {
  readonly stage: Stage;
  /** Estimated fraction of the run that is done, 0 to 1. Never decreases. */
  readonly fraction: number;
  /** Milliseconds since the run began. */
  readonly elapsed: number;
}

/** A step of a stage is finished: a layer of the text model, a block of the transformer or decoder, or a step of the diffusion. */
export interface StepEvent extends EventBase {
  readonly type: "step";
  readonly step: number;
  readonly steps: number;
}

/** A scale begins. */
export interface ScaleEvent extends EventBase {
  readonly type: "scale";
  /** Number of the scale, from 1. */
  readonly scale: number;
  readonly scales: number;
  /** Side of the scale in latent positions. */
  readonly side: number;
}

/** A scale is finished, with the image so far. */
export interface PreviewEvent extends EventBase {
  readonly type: "preview";
  readonly scale: number;
  readonly scales: number;
  readonly side: number;
  readonly image: Pixels;
}

export type HartEvent = StepEvent | ScaleEvent | PreviewEvent;

/** Pixels in RGBA, row by row from the top left, as ImageData has them. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8ClampedArray<ArrayBuffer>;
}

/** A generated image. */
export class HartImage implements Pixels {
  private constructor();
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8ClampedArray<ArrayBuffer>;
  /** A PNG file with the prompt, seed and settings in its text chunks. */
  readonly png: Uint8Array<ArrayBuffer>;
  readonly seed: bigint;
  readonly prompt: string;
  /** The other settings in one line. */
  readonly settings: string;
  /** The end of the prompt that was cut off because the prompt is too long. */
  readonly truncated: string | null;
  /** Milliseconds of each stage and of the run. */
  readonly timings: Readonly<Record<Stage | "total", number>>;
  /** Returns the PNG file. */
  blob(): Blob;
  /** Returns the pixels for a canvas. Browsers only. */
  imageData(): ImageData;
}

/** An error of hart. */
export class HartError extends Error {
  readonly name: "HartError" | "AbortError";
  readonly code: HartErrorCode;
  /** The file, if the error is about one. */
  readonly file?: string;
}

export type HartErrorCode =
  /** A value of the request or of an option is invalid. */
  | "request"
  /** A file cannot be read. */
  | "io"
  /** A file of the model is missing or damaged. */
  | "checkpoint"
  /** A value in a configuration file is invalid or not supported. */
  | "config"
  /** Tensors are missing, superfluous or misshapen. */
  | "weights"
  /** A weight is NaN or infinite. */
  | "not-finite"
  /** The image cannot be encoded. */
  | "image"
  /** The threads cannot be used. */
  | "device"
  /** The work needs more memory than is allowed or can be addressed. */
  | "memory"
  /** A computed value is NaN or infinite. */
  | "overflow"
  /** The signal cancelled the call. `name` is `AbortError`, and `cause` the signal's reason. */
  | "cancelled"
  /** A file cannot be fetched. */
  | "network"
  /** The browser lacks something that the message names. */
  | "unsupported"
  /** The engine trapped or its worker ended. The next call starts a fresh one. */
  | "crashed"
  /** The model is freed. */
  | "freed"
  /** Another error. */
  | "other";
