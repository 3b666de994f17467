// The event stream format of the HTML standard, as a function from text to rows. It knows no connection and no gateway.

/**
 * One event: its type, its data, and the id that it carries itself. `data` is undefined for a block that only moves the
 * cursor. Types of one character below are states of the connection, not events: no type on the wire has a line end.
 */
export type Row = [type: string, data?: any, id?: string | undefined];

/** The stream is open. */
export const OPEN = "\n";

/** The connection is lost. `data` says why, and after how many milliseconds it is opened again. */
export const LOST = "\r";

/**
 * Makes a parser of one response. It takes the text piece by piece, cut anywhere, and returns the events that are whole.
 * An event that the end of the response cuts short is never returned, and neither is its id.
 */
export const parser = (retry: (milliseconds: number) => void) => {
  let rest = "";
  let afterCr = false;
  let type = "";
  let data: string | undefined;
  let id: string | undefined;
  return (text: string): Row[] => {
    const rows: Row[] = [];
    if (!text) return rows;
    // CR LF may be cut in two. The CR has already ended the line.
    if (afterCr && text[0] === "\n") text = text.slice(1);
    afterCr = text.endsWith("\r");
    const lines = text.split(/\r\n?|\n/);
    lines[0] = rest + lines[0];
    rest = lines.pop()!;
    for (const line of lines) {
      // A comment has the empty name, which is no field.
      const [, field, value] = /^([^:]*):? ?(.*)/s.exec(line)! as unknown as [string, string, string];
      if (!line) {
        if (data !== undefined || id !== undefined) rows.push([type || "message", data, id]);
        type = "";
        data = id = undefined;
      } else if (field === "data") data = data === undefined ? value : data + "\n" + value;
      else if (field === "event") type = value;
      else if (field === "id" && !/\0/.test(value)) id = value;
      else if (field === "retry" && /^\d+$/.test(value)) retry(+value);
    }
    return rows;
  };
};
