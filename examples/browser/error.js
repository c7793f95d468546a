/** An error of hart. `code` is one of HartErrorCode in hart.d.ts. */
export class HartError extends Error {
  constructor(code, message, file, options) {
    super(message, options);
    this.name = code === "cancelled" ? "AbortError" : "HartError";
    this.code = code;
    if (file !== undefined && file !== null) this.file = file;
  }
}
