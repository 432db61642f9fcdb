//! A command in Zig: it shows its arguments and one variable, and ends with the code that its last argument says.
const std = @import("std");

pub fn main(init: std.process.Init) !void {
    var buffer: [1024]u8 = undefined;
    var stdout = std.Io.File.stdout().writer(init.io, &buffer);
    const out = &stdout.interface;
    var args = try std.process.Args.Iterator.initAllocator(init.minimal.args, init.gpa);
    defer args.deinit();
    _ = args.skip();
    var code: u8 = 0;
    while (args.next()) |arg| {
        try out.print("arg {s}\n", .{arg});
        code = std.fmt.parseInt(u8, arg, 10) catch 0;
    }
    try out.flush();
    std.process.exit(code);
}
